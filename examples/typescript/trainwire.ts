// Calls a trainwire server from Node.js: copy this file, `gen/` and nothing else.

import { createHash, randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { extname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, type Client } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import {
  BadRequestSchema,
  type BadRequest_FieldViolation,
} from "./gen/google/rpc/error_details_pb.js";
import {
  DatasetFormat,
  DatasetService,
  UploadDatasetRequestSchema,
  type Dataset,
  type UploadDatasetRequest,
} from "./gen/trainwire/v1/dataset_pb.js";
import { ModelService } from "./gen/trainwire/v1/model_pb.js";
import { SystemService } from "./gen/trainwire/v1/system_pb.js";
import {
  TrainingService,
  type TrainingEvent,
  type TrainingJob,
  type TrainingRequestSchema,
} from "./gen/trainwire/v1/training_pb.js";

export interface Trainwire {
  training: Client<typeof TrainingService>;
  datasets: Client<typeof DatasetService>;
  models: Client<typeof ModelService>;
  system: Client<typeof SystemService>;
}

const CHUNK_BYTES = 1 << 20;
const TERMINAL = ["succeeded", "failed", "cancelled"];
const FORMATS: Record<string, DatasetFormat> = {
  ".csv": DatasetFormat.CSV,
  ".parquet": DatasetFormat.PARQUET,
  ".arrow": DatasetFormat.ARROW,
};

/** Clients of all services at `HOST:PORT`, over one connection. */
export function connect(target: string): Trainwire {
  const transport = createGrpcTransport({
    baseUrl: `http://${target}`,
    // The server takes a ping every 20 seconds at most; a silent stream stays open with these.
    pingIntervalMs: 30_000,
    pingTimeoutMs: 10_000,
  });
  return {
    training: createClient(TrainingService, transport),
    datasets: createClient(DatasetService, transport),
    models: createClient(ModelService, transport),
    system: createClient(SystemService, transport),
  };
}

/** Uploads a CSV, Parquet or Arrow file as it is, without holding it in memory. */
export async function upload({ datasets }: Trainwire, path: string): Promise<Dataset> {
  const format = FORMATS[extname(path).toLowerCase()];
  if (format === undefined) {
    throw new Error(`${path}: the file's name must end in ${Object.keys(FORMATS).join(", ")}`);
  }
  return datasets.uploadDataset(uploadMessages(path, format));
}

/** The messages of an upload: what is about to be sent, then the bytes. */
async function* uploadMessages(
  path: string,
  format: DatasetFormat,
): AsyncGenerator<UploadDatasetRequest> {
  const hash = createHash("sha256");
  for await (const bytes of createReadStream(path)) hash.update(bytes);
  const sizeBytes = BigInt((await stat(path)).size);
  const header = { format, sizeBytes, sha256: hash.digest("hex") };
  yield create(UploadDatasetRequestSchema, { payload: { case: "header", value: header } });
  for await (const data of createReadStream(path, { highWaterMark: CHUNK_BYTES })) {
    yield create(UploadDatasetRequestSchema, { payload: { case: "chunk", value: { data } } });
  }
}

/** Submits a training. With its requestId a try whose answer was lost makes no second job. */
export async function submit(
  { training }: Trainwire,
  request: MessageInitShape<typeof TrainingRequestSchema>,
): Promise<TrainingJob> {
  const once = { requestId: randomUUID(), ...request };
  for (let attempt = 1; ; attempt++) {
    try {
      return await training.submitTraining(once);
    } catch (error) {
      if (!isOutage(error) || attempt === 5) throw error;
      await sleep(250 * 2 ** attempt);
    }
  }
}

/**
 * Every event of a job after `afterSequence`, to the terminal one, across lost connections.
 * Leaving the loop early is fine: the call ends, the job goes on.
 */
export async function* watch(
  { training }: Trainwire,
  name: string,
  afterSequence = 0,
): AsyncGenerator<TrainingEvent> {
  for (let failures = 0; failures < 10; failures++) {
    const call = new AbortController();
    const events = training.watchTraining({ name, afterSequence }, { signal: call.signal });
    try {
      for await (const event of events) {
        failures = 0;
        // `progress` events are not numbered: they say how far the current epoch is.
        if (event.sequence > 0) afterSequence = event.sequence;
        yield event;
        if (TERMINAL.includes(event.event.case ?? "")) return;
      }
    } catch (error) {
      if (!isOutage(error)) throw error;
    } finally {
      await hangUp(call, events);
    }
    await sleep(Math.min(250 * 2 ** failures, 10_000));
  }
  throw new ConnectError(`${name}: the server is not there; the job goes on`, Code.Unavailable);
}

/** Ends a call: leaving a `for await` alone, or events unread, keeps the process alive. */
async function hangUp(call: AbortController, events: AsyncIterable<TrainingEvent>): Promise<void> {
  call.abort();
  try {
    for await (const _ of events);
  } catch {
    // It was cancelled here, or had failed before.
  }
}

/** Everything that is wrong with a request, each with its path; empty for other errors. */
export function violations(error: unknown): BadRequest_FieldViolation[] {
  const details = ConnectError.from(error).findDetails(BadRequestSchema);
  return details.flatMap((detail) => detail.fieldViolations);
}

/** Whether the server could not be reached or the connection was lost. */
function isOutage(error: unknown): boolean {
  return [Code.Unavailable, Code.Aborted].includes(ConnectError.from(error).code);
}
