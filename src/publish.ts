/**
 * Publishing an attempt in the local store, which is served at once, and copying what lies there to S3. The local
 * `result.json` is the commit point. The copy is made from what the local store holds, by the outbox, as often as it
 * takes: an outage of S3 costs no second run.
 */

import type { Outcome, Settlement } from './job/outcome.ts'
import { reasonOf } from './job/outcome.ts'
import {
  type AttemptRecord,
  DOCUMENT_FORMAT,
  encodeResult,
  encodeStatus,
  type JobState,
  parseResultFiles,
  parseStatus,
  type S3State,
  type StatusDocument,
} from './job/result.ts'
import type { RunReport } from './run/run.ts'
import type { Workdir } from './run/workdir.ts'
import { type LocalStore, type Store, StoreError } from './store/store.ts'

export interface Stores {
  readonly local: LocalStore
  readonly s3: Store | undefined
}

/** What the documents say of a job, whatever became of it. */
export interface JobFacts {
  readonly uuid: string
  readonly type: string | null
  readonly tags?: Readonly<Record<string, string>> | undefined
  /** of the algorithm */
  readonly version: string
  /** this worker's name */
  readonly worker: string
}

/** What the stores remember of a job when it is reserved. */
export interface JobHistory {
  readonly status: StatusDocument | undefined
  /** its result is committed: it must not run again */
  readonly isComplete: boolean
}

/** What S3 knows of a job is asked for so long; an S3 that hangs must not hold the job up. */
const S3_HISTORY_MS = 3_000
/** A long history keeps its newest attempts only; each record has its number. */
const MAX_RECORDS = 50

/**
 * Reads what is known of a job.
 * @param askS3 true when another worker may have tried the job before
 * @throws StoreError
 */
export async function readHistory(stores: Stores, uuid: string, askS3: boolean): Promise<JobHistory> {
  const isComplete = (await stores.local.read(uuid, 'result.json')) !== undefined
  const here = parseStatus((await stores.local.read(uuid, 'status.json')) ?? '')
  if (isComplete || !askS3 || stores.s3 === undefined) return { status: here, isComplete }
  // An S3 outage must not hold the job up: its history is then counted from this host alone.
  const there = parseStatus((await readSoon(stores.s3, uuid, 'status.json')) ?? '')
  if (there === undefined || (here !== undefined && here.timestamp >= there.timestamp))
    return { status: here, isComplete }
  return { status: there, isComplete: there.state === 'complete' && (await isOnS3(stores.s3, uuid)) }
}

/** Another host committed it there, and could not settle it: it died, or lost its broker. */
async function isOnS3(s3: Store, uuid: string): Promise<boolean> {
  return (await readSoon(s3, uuid, 'result.json')) !== undefined
}

/** Undefined also when S3 does not answer. */
function readSoon(s3: Store, uuid: string, document: 'status.json' | 'result.json'): Promise<string | undefined> {
  return s3.read(uuid, document, AbortSignal.timeout(S3_HISTORY_MS)).catch(() => undefined)
}

/**
 * Attempts of a job without a result that count. One that failed for good and was kicked by hand begins anew. A success
 * whose result was never committed is none: this machine failed it, or its worker died, which the tracker knows.
 */
export function countedAttempts(history: JobHistory): readonly AttemptRecord[] {
  if (history.status === undefined || history.status.state === 'failed') return []
  return history.status.attempts.filter(({ outcome }) => outcome !== 'success')
}

/** Makes the record of one attempt. */
export function makeAttemptRecord(attempt: number, worker: string, report: RunReport): AttemptRecord {
  return {
    attempt,
    worker,
    started: report.started.toISOString(),
    ended: report.ended.toISOString(),
    duration_seconds: report.durationSeconds,
    outcome: report.outcome.kind,
    exit_code: report.exitCode,
    ...(report.signal === undefined ? {} : { signal: report.signal }),
    error: report.outcome.kind === 'success' ? null : reasonOf(report.outcome),
    stderr_tail: report.stderrTail,
    ...(report.kill === undefined ? {} : { kill: report.kill }),
    ...(report.usage === undefined ? {} : { usage: report.usage }),
  }
}

/**
 * Publishes a successful attempt locally.
 * @param stillOurs asked right before the commit; false discards all
 * @returns false when it was discarded
 * @throws StoreError
 */
export function publishSuccess(
  stores: Stores,
  job: JobFacts,
  previous: readonly AttemptRecord[],
  record: AttemptRecord,
  report: RunReport,
  workdir: Workdir,
  stillOurs: () => Promise<boolean>,
): Promise<boolean> {
  const timestamp = new Date().toISOString()
  const files = report.outputs.map(({ name, bytes, sha256 }) => ({ name, bytes, sha256 }))
  const status = makeStatus(job, 'complete', [...previous, record], {
    timestamp,
    ...(report.skipped.length > 0 ? { skipped_files: report.skipped } : {}),
    ...(stores.s3 === undefined ? {} : { s3: { state: 'pending', since: timestamp } as S3State }),
  })
  const result = encodeResult({
    uuid: job.uuid,
    type: job.type ?? '',
    version: job.version,
    timestamp,
    attempt: record.attempt,
    worker: job.worker,
    started: record.started,
    finished: record.ended,
    duration_seconds: record.duration_seconds,
    exit_code: record.exit_code ?? 0,
    resultJson: report.resultJson ?? 'null',
    files,
  })
  const paths = new Map([...report.outputs.map(({ name, path }) => [name, path] as const), ...logsOf(workdir)])
  return stores.local.publish({ uuid: job.uuid, files: paths, status: encodeStatus(status), result }, stillOurs)
}

/**
 * Publishes status and logs of an attempt that did not succeed, or the status of a job that was refused without one.
 * @param stillOurs asked before anything changes; false discards all
 * @returns false when it was discarded
 * @throws StoreError
 */
export function publishFailure(
  stores: Stores,
  job: JobFacts,
  attempts: readonly AttemptRecord[],
  settlement: Settlement,
  outcome: Outcome,
  workdir: Workdir | undefined,
  stillOurs: () => Promise<boolean>,
): Promise<boolean> {
  const now = Date.now()
  const buried = settlement.action === 'bury'
  const status = makeStatus(job, buried ? 'failed' : 'queued', attempts, {
    timestamp: new Date(now).toISOString(),
    ...(buried ? { reason: settlement.reason } : { reason: reasonOf(outcome) }),
    ...(settlement.action === 'release'
      ? { retry_at: new Date(now + settlement.delaySeconds * 1000).toISOString() }
      : {}),
  })
  const files = new Map(workdir === undefined ? [] : logsOf(workdir))
  return stores.local.publish({ uuid: job.uuid, files, status: encodeStatus(status) }, stillOurs)
}

/** What became of a copy to S3. `failed`: the outbox tries again; `passing` when the bucket cannot be reached at all. */
export type CopyResult =
  | { readonly kind: 'copied' }
  | { readonly kind: 'failed'; readonly error: string; readonly passing: boolean }

/**
 * Copies the documents of a job to S3 as they lie in the local store. A result that another host committed there first
 * stays as it is. Of a complete job the local status tells how the copy went.
 */
export async function copyToS3(stores: Stores, uuid: string, signal: AbortSignal): Promise<CopyResult> {
  const { s3, local } = stores
  if (s3 === undefined) return { kind: 'copied' }
  try {
    const text = await local.read(uuid, 'status.json')
    const status = parseStatus(text ?? '')
    // Removed by its owner meanwhile: there is nothing to copy.
    if (text === undefined || status === undefined) return { kind: 'copied' }
    const result = await local.read(uuid, 'result.json')
    if (result === undefined) await s3.publish({ uuid, files: await filesOf(local, uuid, []), status: text, signal })
    else if (status.s3?.state !== 'published') await copyResult(stores.local, s3, status, result, signal)
    return { kind: 'copied' }
  } catch (error) {
    if (!(error instanceof StoreError)) throw error
    return { kind: 'failed', error: error.message, passing: error.code === 'unavailable' }
  }
}

async function copyResult(
  local: LocalStore,
  s3: Store,
  status: StatusDocument,
  result: string,
  signal: AbortSignal,
): Promise<void> {
  const { uuid } = status
  const since = new Date().toISOString()
  const published = encodeStatus({ ...status, s3: { state: 'published', since } })
  const files = parseResultFiles(result)
  const paths = await filesOf(
    local,
    uuid,
    files.map(({ name }) => name),
  )
  if (await s3.publish({ uuid, files: paths, status: published, result, signal })) {
    return local.writeStatus(uuid, published)
  }
  const error = 'another host published this job first; what it published was kept'
  await local.writeStatus(uuid, encodeStatus({ ...status, s3: { state: 'published', error, since } }))
}

async function filesOf(local: LocalStore, uuid: string, names: readonly string[]): Promise<Map<string, string>> {
  const paths = new Map<string, string>()
  for (const name of [...names, 'stdout.log', 'stderr.log']) {
    const file = await local.find(uuid, name)
    if (file !== undefined) paths.set(name, file.path)
  }
  return paths
}

function makeStatus(
  job: JobFacts,
  state: JobState,
  attempts: readonly AttemptRecord[],
  rest: Pick<StatusDocument, 'timestamp'> & Partial<StatusDocument>,
): StatusDocument {
  return {
    format: DOCUMENT_FORMAT,
    uuid: job.uuid,
    type: job.type,
    state,
    ...rest,
    ...(job.tags === undefined ? {} : { tags: job.tags }),
    attempts: attempts.slice(-MAX_RECORDS),
  }
}

function logsOf({ logs, stdout, stderr }: Workdir): readonly (readonly [string, string])[] {
  return (
    logs ?? [
      ['stdout.log', stdout],
      ['stderr.log', stderr],
    ]
  )
}
