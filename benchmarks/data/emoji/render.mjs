// Renders SVG drawings to 64-px RGB on white. Usage: node render.mjs IN.jsonl OUT.bin OUT.json
// IN.jsonl: one {"svg": ...} a line. OUT.bin: 64*64*3 bytes a drawing. OUT.json: which lines were rendered.
import { createInterface } from "node:readline";
import { createReadStream, createWriteStream, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const { Resvg } = createRequire(process.cwd() + "/")("@resvg/resvg-js");
const [input, pixels, report] = process.argv.slice(2);
const out = createWriteStream(pixels);
const done = [];
let line = 0;
for await (const text of createInterface({ input: createReadStream(input) })) {
  try {
    const { svg } = JSON.parse(text);
    const image = new Resvg(svg, { fitTo: { mode: "width", value: 64 }, background: "white" }).render();
    if (image.width === 64 && image.height === 64) {
      const rgba = image.pixels;
      const rgb = Buffer.alloc(64 * 64 * 3);
      for (let i = 0; i < 64 * 64; i++) for (let c = 0; c < 3; c++) rgb[3 * i + c] = rgba[4 * i + c];
      out.write(rgb);
      done.push(line);
    }
  } catch (error) {
    console.error(`drawing ${line} is left out: ${error.message ?? error}`);
  }
  line++;
}
await new Promise((resolve) => out.end(resolve));
writeFileSync(report, JSON.stringify(done));
