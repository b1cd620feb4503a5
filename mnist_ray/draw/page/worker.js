// Runs the graphs, so that drawing stays smooth. onnxruntime-web's own script stands before this text: it defines `ort`.
"use strict";
let preprocess, network, firstLayer;

async function start(files) {
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = files["ort-wasm-simd-threaded.wasm"];
  ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([files["ort-wasm-simd-threaded.mjs"]], { type: "text/javascript" })) };
  const session = name => ort.InferenceSession.create(files[name], { executionProviders: ["wasm"], logSeverityLevel: 3 });
  preprocess = await session("preprocess.onnx");
  network = await session("model.onnx");
  firstLayer = files["first_layer.onnx"] && await session("first_layer.onnx");
}

async function run(session, tensor) {
  return (await session.run({ [session.inputNames[0]]: tensor }))[session.outputNames[0]];
}

// pixels: the bytes of [height, width, 4]
async function answer({ pixels, width, height }) {
  const image = await run(preprocess, new ort.Tensor("uint8", new Uint8Array(pixels), [height, width, 4]));
  if (image.dims[1] === 1 && !image.data.some(Boolean)) return { image: image.data, logits: null, maps: null };
  const logits = await run(network, image);
  const maps = firstLayer && await run(firstLayer, image);
  return { image: image.data, logits: logits.data, maps: maps && { data: maps.data, dims: maps.dims } };
}

onmessage = async ({ data }) => {
  try {
    postMessage(data.files ? await start(data.files) : await answer(data));
  } catch (error) {
    postMessage({ error: String(error?.message ?? error) });
  }
};
