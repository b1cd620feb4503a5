// Runs the graphs, so that drawing stays smooth. onnxruntime-web's own script stands before this text: it defines `ort`.
"use strict";
let picture, firstLayer;

async function start(files) {
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = files["ort-wasm-simd-threaded.wasm"];
  ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([files["ort-wasm-simd-threaded.mjs"]], { type: "text/javascript" })) };
  const session = name => ort.InferenceSession.create(files[name], { executionProviders: ["wasm"], logSeverityLevel: 3 });
  picture = await session("picture.onnx");
  firstLayer = files["first_layer.onnx"] && await session("first_layer.onnx");
}

// pixels: the bytes of [height, width, 4]
async function answer({ pixels, width, height }) {
  const { image, probabilities, probability, known, several } =
    await picture.run({ picture: new ort.Tensor("uint8", new Uint8Array(pixels), [height, width, 4]) });
  if (!probability.data[0]) return { image: image.data, p: null, known: false, maps: null };
  const maps = firstLayer && (await firstLayer.run({ [firstLayer.inputNames[0]]: image })).maps;
  return { image: image.data, p: Array.from(probabilities.data), known: Boolean(known.data[0]), several: Boolean(several?.data[0]), maps: maps && { data: maps.data, dims: maps.dims } };
}

onmessage = async ({ data }) => {
  try {
    postMessage(data.files ? await start(data.files) : await answer(data));
  } catch (error) {
    postMessage({ error: String(error?.message ?? error) });
  }
};
