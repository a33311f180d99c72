// What a service written in TypeScript does with trainwire, one verb per run:
//   node checks.mjs HOST:PORT VERB [ARGUMENT...]
// Prints the messages it received, one JSON object a line, with proto field names.

import {
  toJson,
  type DescMessage,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";

import { ErrorInfoSchema } from "../../../examples/typescript/gen/google/rpc/error_details_pb.js";
import { DatasetSchema } from "../../../examples/typescript/gen/trainwire/v1/dataset_pb.js";
import {
  JobState,
  TrainingEventSchema,
  TrainingJobSchema,
  type TrainingRequestSchema,
} from "../../../examples/typescript/gen/trainwire/v1/training_pb.js";
import {
  connect,
  submit,
  upload,
  violations,
  watch,
} from "../../../examples/typescript/trainwire.js";

interface Trainer {
  epochs: number;
  earlyStoppingPatience?: number;
}

const [target = "", verb = "", ...given] = process.argv.slice(2);
const trainwire = connect(target);

function print<Desc extends DescMessage>(schema: Desc, message: MessageShape<Desc>): void {
  console.log(JSON.stringify(toJson(schema, message, { useProtoFieldName: true })));
}

/** A tiny network. */
const NETWORK = {
  case: "hybridCnnLstm" as const,
  value: {
    convBlocks: 1,
    convChannels: 8,
    kernelSize: 3,
    lstmHiddenSize: 8,
    attentionHeads: 2,
    attentionHeadSize: 4,
  },
};

/** Trains in a moment on the features `a` and `b`. */
function smallRequest(dataset: string, trainer: Trainer) {
  return {
    dataset,
    data: {
      layout: {
        case: "windows" as const,
        value: { sequenceLength: 8, featureColumns: ["a", "b"] },
      },
      target: { case: "column" as const, value: { name: "y" } },
    },
    model: { architecture: NETWORK },
    trainer: { batchSize: 32, learningRate: 0.01, ...trainer },
  } satisfies MessageInitShape<typeof TrainingRequestSchema>;
}

/** Trains by the one call that submits and watches. */
async function train(dataset: string): Promise<void> {
  for await (const event of trainwire.training.train(smallRequest(dataset, { epochs: 3 }))) {
    print(TrainingEventSchema, event);
  }
}

/** Trains, hangs up after the third event and goes on from there. */
async function resume(dataset: string): Promise<void> {
  const job = await submit(trainwire, smallRequest(dataset, { epochs: 3 }));
  for await (const event of watch(trainwire, job.name)) {
    if (event.sequence > 0) print(TrainingEventSchema, event);
    if (event.sequence === 3) break;
  }
  await follow(job.name, "3");
}

/** Prints every event after a sequence number, across lost connections. */
async function follow(job: string, afterSequence: string): Promise<void> {
  for await (const event of watch(trainwire, job, Number(afterSequence))) {
    print(TrainingEventSchema, event);
  }
}

/** Cancels a job that would train for days once its first epoch is done. */
async function cancel(dataset: string): Promise<void> {
  const endless = { epochs: 100_000, earlyStoppingPatience: 0 };
  const { name } = await submit(trainwire, smallRequest(dataset, endless));
  for await (const { event, sequence } of watch(trainwire, name)) {
    if (event.case !== "epoch") continue;
    await trainwire.training.cancelTraining({ name });
    await follow(name, String(sequence));
    break;
  }
  const job = await trainwire.training.getTraining({ name });
  if (job.state !== JobState.CANCELLED) throw new Error(`${name} is ${JobState[job.state]}`);
}

/** Prints what a bad request is answered with: code, reason and violations. */
async function refusal(dataset: string): Promise<void> {
  const bad = { dataset, trainer: { epochs: 0, learningRate: 7, labelSmoothing: NaN } };
  try {
    await submit(trainwire, { ...bad, model: { dropout: 0.95 } });
  } catch (error) {
    const { code } = ConnectError.from(error);
    const reason = ConnectError.from(error).findDetails(ErrorInfoSchema)[0]?.reason;
    const fields = violations(error).map(({ field, description }) => [field, description]);
    console.log(JSON.stringify({ code, reason, fields: Object.fromEntries(fields) }));
  }
}

/** Submits zeros, as numbers, flags and reals, and prints the job. */
async function zeros(dataset: string): Promise<void> {
  const job = await submit(trainwire, {
    ...smallRequest(dataset, { epochs: 1, earlyStoppingPatience: 0 }),
    model: { dropout: 0.0, architecture: NETWORK },
    balancing: { useFocalLoss: false },
  });
  print(TrainingJobSchema, job);
}

const verbs: Record<string, (...given: string[]) => Promise<void>> = {
  upload: async (path) => print(DatasetSchema, await upload(trainwire, path ?? "")),
  train: (dataset) => train(dataset ?? ""),
  resume: (dataset) => resume(dataset ?? ""),
  watch: (job, afterSequence) => follow(job ?? "", afterSequence ?? "0"),
  cancel: (dataset) => cancel(dataset ?? ""),
  refusal: (dataset) => refusal(dataset ?? ""),
  zeros: (dataset) => zeros(dataset ?? ""),
};
const run = verbs[verb];
if (run === undefined) throw new Error(`${verb} is none of ${Object.keys(verbs).join(", ")}`);
await run(...given);
