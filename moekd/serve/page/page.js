"use strict";
const MOST_BARS = 10;
const at = (id) => document.getElementById(id);
let info = null;
let picture = null;
let shown = null;
let asked = 0;

const list = (text) => text.split(",").map((part) => part.trim()).filter((part) => part);
const lines = (text) => text.split("\n").map((part) => part.trim()).filter((part) => part);

const shownAs = { classes: ", ", templates: "\n" };
const own = (id, what) => at(id).value === info[what].join(shownAs[what]);

function refill(id, what) {
  at(id).value = info[what].join(shownAs[what]);
}

function say(text) {
  at("status").textContent = text;
  at("status").hidden = !text;
}

function fail(text) {
  at("error").textContent = text;
  at("error").hidden = !text;
}

async function read(response) {
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  const error = body && body.error;
  if (!error) throw new Error(`The server answered with status ${response.status}.`);
  const details = [error.expected && `expected ${error.expected}`, error.found && `found ${error.found}`];
  const more = details.filter((part) => part).join(", ");
  const message = error.message.replace(/^pictures\[0\]: /, "");
  throw new Error(message[0].toUpperCase() + message.slice(1) + (more ? ` (${more}).` : "."));
}

function bar(entry) {
  const item = document.createElement("li");
  const line = document.createElement("div");
  const name = document.createElement("span");
  const share = document.createElement("span");
  const track = document.createElement("div");
  const fill = document.createElement("div");
  line.className = "line";
  name.className = "name";
  share.className = "share";
  track.className = "track";
  fill.className = "fill";
  const percent = 100 * entry.probability;
  name.textContent = entry.label;
  share.textContent = `${percent.toFixed(1)} %`;
  track.setAttribute("aria-hidden", "true");
  fill.style.width = `${percent}%`;
  line.append(name, share);
  track.append(fill);
  item.append(line, track);
  return item;
}

async function ask() {
  if (!picture || !info) return;
  const number = ++asked;
  const labels = own("labels", "classes") ? [] : list(at("labels").value);
  const templates = own("templates", "templates") ? [] : lines(at("templates").value);
  const form = new FormData();
  form.append("pictures", picture, picture.name || "pasted picture");
  form.append("top", String(MOST_BARS));
  if (labels.length) form.append("labels", labels.join(","));
  templates.forEach((template) => form.append("templates", template));
  fail("");
  say("Asking the student...");
  at("answer").setAttribute("aria-busy", "true");
  try {
    if (picture.size > info.limits.max_bytes) {
      throw new Error(`The picture is too large: at most ${info.limits.max_bytes} bytes, found ${picture.size}.`);
    }
    const answer = await read(await fetch("predict", { method: "POST", body: form }));
    if (number !== asked) return;
    const classes = answer.predictions[0].classes;
    at("bars").replaceChildren(...classes.map(bar));
    const count = labels.length || info.classes.length;
    say(count > classes.length ? `The ${classes.length} most probable of ${count} labels.` : "");
  } catch (error) {
    if (number !== asked) return;
    at("bars").replaceChildren();
    say("");
    fail(error instanceof TypeError ? "The server can't be reached." : error.message);
  } finally {
    if (number === asked) at("answer").removeAttribute("aria-busy");
  }
}

function choose(file) {
  if (!file) return;
  picture = file;
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(file);
  const image = at("preview");
  image.onload = () => {
    image.hidden = false;
    at("invite").hidden = true;
    image.classList.toggle("tiny", image.naturalWidth < 160);
  };
  image.onerror = () => {
    image.hidden = true;
    at("invite").hidden = false;
  };
  image.alt = `The chosen picture, ${file.name || "pasted"}`;
  image.src = shown;
  at("hint").textContent = file.name || "pasted picture";
  at("ask").disabled = false;
  ask();
}

function listen() {
  const drop = at("drop");
  at("file").addEventListener("change", () => choose(at("file").files[0]));
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  at("labels").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  });
  at("reset").addEventListener("click", () => {
    refill("labels", "classes");
    ask();
  });
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  for (const kind of ["dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.remove("over");
    });
  }
  document.addEventListener("drop", (event) => choose(event.dataTransfer.files[0]));
  document.addEventListener("paste", (event) => choose(event.clipboardData.files[0]));
}

function fact(text) {
  const item = document.createElement("li");
  item.textContent = text;
  return item;
}

function examples() {
  const place = new URL(".", location.href);
  at("curl").textContent = `curl -F pictures=@cat.jpg -F "labels=cat,dog" ${place}predict`;
  at("python").textContent = [
    "import httpx",
    "",
    'with open("cat.jpg", "rb") as picture:',
    `    answer = httpx.post("${place}predict", files={"pictures": picture}, data={"top": 3})`,
    'print(answer.json()["predictions"][0]["classes"])',
  ].join("\n");
}

async function begin() {
  listen();
  examples();
  try {
    info = await read(await fetch("info"));
  } catch (error) {
    fail(error instanceof TypeError ? "The server can't be reached." : error.message);
    return;
  }
  document.title = `${info.title} - moekd`;
  at("title").textContent = info.title;
  const [channels, height, width] = info.input.shape;
  at("facts").replaceChildren(
    fact(info.network),
    fact(`${info.parameters.toLocaleString("en")} parameters`),
    fact(`sees ${width} x ${height} ${channels === 1 ? "grey" : "colour"} pixels`),
    fact(`${info.classes.length} classes`),
  );
  refill("labels", "classes");
  refill("templates", "templates");
  at("prompts").hidden = !info.reads_texts;
  at("about-labels").textContent = info.reads_texts
    ? "Any words: the student reads them."
    : "Leave labels out to choose among fewer; the student knows no others.";
  at("card").textContent = info.card;
  at("card-box").hidden = !info.card;
  if (picture) ask();
}

begin();
