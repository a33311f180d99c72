// From a CSV file of your own to a finished training:
//   node build/train.js bars.csv direction [HOST:PORT]

import { connect, submit, upload, violations, watch } from "./trainwire.js";

const [file, label, target = "127.0.0.1:50051"] = process.argv.slice(2);
if (file === undefined || label === undefined) {
  console.error("usage: node build/train.js FILE LABEL_COLUMN [HOST:PORT]");
  process.exit(2);
}

const trainwire = connect(target);
try {
  const dataset = await upload(trainwire, file);
  console.log(`${dataset.name}: ${dataset.rowCount} rows`);

  const job = await submit(trainwire, {
    dataset: dataset.name,
    data: {
      layout: { case: "windows", value: { sequenceLength: 30 } },
      target: { case: "column", value: { name: label } },
    },
    // What is left out has the contract's default; 0 and false are values like any other.
    trainer: { epochs: 10, learningRate: 0.001, earlyStoppingPatience: 0 },
    balancing: { useFocalLoss: false },
  });

  for await (const { event } of watch(trainwire, job.name)) {
    if (event.case === "epoch") {
      const { epoch, epochs, validation } = event.value;
      console.log(`epoch ${epoch}/${epochs}: validation loss ${validation?.loss.toFixed(4)}`);
    } else if (event.case === "succeeded") {
      console.log(`${event.value.model}: test accuracy ${event.value.test?.accuracy.toFixed(3)}`);
    } else if (event.case === "failed") {
      throw new Error(event.value.failure?.message);
    }
  }
} catch (error) {
  for (const { field, description } of violations(error)) console.error(`${field}: ${description}`);
  if (violations(error).length === 0) console.error(String(error));
  process.exitCode = 1;
}
