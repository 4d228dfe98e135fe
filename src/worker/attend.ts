/**
 * What a slot does with one reserved job: parse, run, publish, settle.
 *
 * The races that matter here:
 * - The reservation lasts one TTR; a heartbeat touches it for as long as the job is in our hands. When a touch is
 *   refused, or the connection breaks, the job may be with another worker: the run is ended, its output is discarded,
 *   and the broker is told nothing.
 * - Right before the commit point the reservation is touched once more: who lost it does not publish.
 * - A job that was published but not deleted (a crash in between) comes again: it is deleted, not run.
 */

import { type Outcome, reasonOf, type Settlement, settle, spendsAttempt } from '../job/outcome.ts'
import { isUuid, PackageError, parsePackage, type WorkPackage } from '../job/package.ts'
import { type AttemptRecord, DOCUMENT_FORMAT, type StatusDocument } from '../job/result.ts'
import {
  copyToS3,
  countedAttempts,
  type JobFacts,
  makeAttemptRecord,
  publishFailure,
  publishSuccess,
  readHistory,
} from '../publish.ts'
import { QueueError, type Reservation } from '../queue/queue.ts'
import type { JobRef } from '../report/events.ts'
import type { Algorithm } from '../run/algorithm.ts'
import { type RunReport, runAlgorithm } from '../run/run.ts'
import { createWorkdir, readTail, removeWorkdir, type Workdir } from '../run/workdir.ts'
import { StoreError } from '../store/store.ts'
import type { Heartbeat } from './heartbeat.ts'
import type { SlotContext } from './worker.ts'

/** A job whose uuid is in hand here already waits this long. */
const TWIN_DELAY_SECONDS = 1
/** Seconds until an S3 copy that failed is tried again. */
const S3_RETRY_SECONDS = 15
const SHOWN_STDOUT_BYTES = 4096

/** A reservation in the hands of a slot. */
export interface Hand {
  readonly context: SlotContext
  readonly slot: number
  readonly reservation: Reservation
  readonly heartbeat: Heartbeat
  /** ends the run; its reason is a RunEnd */
  readonly signal: AbortSignal
  /** performance.now() */
  readonly reservedAt: number
}

interface Job extends Hand {
  readonly ref: JobRef
  readonly workPackage: WorkPackage
}

interface Attempt extends Job {
  readonly algorithm: Algorithm
  readonly workdir: Workdir
  readonly previous: readonly AttemptRecord[]
  readonly attempt: number
  readonly maxAttempts: number
}

/**
 * Brings one reserved job to its settlement.
 * @returns true when this machine was at fault and the slot should rest a little
 * @throws QueueError when the connection is gone
 */
export async function attendJob(hand: Hand): Promise<boolean> {
  const { reservation, context, slot } = hand
  let workPackage: WorkPackage
  try {
    workPackage = parsePackage(reservation.body)
  } catch (error) {
    if (!(error instanceof PackageError)) throw error
    return withFaults(hand, error.uuid, () =>
      refuse(hand, { kind: 'malformed', detail: error.message }, { uuid: error.uuid, type: error.type }),
    )
  }
  const { uuid, type } = workPackage.header
  const job: Job = {
    ...hand,
    workPackage,
    ref: { slot, uuid, type, ticket: reservation.ticket, tube: reservation.tube },
  }
  if (context.running.has(uuid)) {
    await settleJob(job, 0, { action: 'release', delaySeconds: TWIN_DELAY_SECONDS })
    return false
  }
  context.running.set(uuid, undefined)
  try {
    return await withFaults(hand, uuid, () => work(job))
  } finally {
    context.running.delete(uuid)
  }
}

/** A fault of this machine releases the job; it is not the job's doing and spends no attempt. */
async function withFaults(hand: Hand, uuid: string | undefined, action: () => Promise<void>): Promise<boolean> {
  const { context, slot, reservation } = hand
  try {
    await action()
    return false
  } catch (error) {
    if (error instanceof QueueError) throw error
    const detail = error instanceof Error ? error.message : String(error)
    const store = error instanceof StoreError ? 'local' : undefined
    const subject = { slot, ticket: reservation.ticket, ...(uuid === undefined ? {} : { uuid }) }
    if (store === undefined) context.bus.emit({ event: 'slot_fault', ...subject, error: detail, retrySeconds: 1 })
    else context.bus.emit({ event: 'publish_failed', ...subject, store, error: detail })
    await tellBroker(hand, settle({ kind: 'worker_fault', detail }, 0, 1, context.retryRules, Math.random()), uuid)
    return true
  }
}

async function work(job: Job): Promise<void> {
  const { context, reservation, ref, workPackage } = job
  const { header } = workPackage
  const history = await readHistory(context.stores, ref.uuid, reservation.reserves > 1)
  if (history.isComplete) {
    context.bus.emit({ ...ref, event: 'job_already_complete' })
    return finishComplete(job, 0)
  }
  const algorithm = context.catalogue().algorithms.get(ref.type)
  if (algorithm === undefined) {
    const outcome: Outcome = { kind: 'unknown_type', detail: context.unknownType(ref.type) }
    return refuse(job, outcome, { uuid: ref.uuid, type: ref.type, tags: header.tags })
  }
  await context.stores.local.prepare(ref.uuid)
  const previous = countedAttempts(history)
  const attempt = (previous.at(-1)?.attempt ?? 0) + 1
  const maxAttempts = header.max_attempts ?? algorithm.maxAttempts ?? context.maxAttempts
  const runId = `${ref.uuid}.${attempt}.${process.pid}.${Date.now().toString(36)}`
  const settings = context.settingsFor(algorithm)
  const workdir = await createWorkdir(context.workBase, runId, workPackage.payloadJson, settings, algorithm.user)
  try {
    const taken: Attempt = { ...job, algorithm, workdir, previous, attempt, maxAttempts }
    await conclude(taken, await run(taken))
  } finally {
    await removeWorkdir(workdir)
  }
}

async function run(job: Attempt): Promise<RunReport> {
  const { context, reservation, ref, workPackage, attempt, maxAttempts, workdir } = job
  const { bus } = context
  const limitSeconds = reservation.ttrSeconds + context.graceSeconds
  bus.emit({
    ...ref,
    event: 'job_dequeued',
    attempt,
    maxAttempts,
    directory: context.directoryOf(ref.uuid),
    payloadJson: workPackage.payloadJson,
    secondsLeft: reservation.ttrSeconds,
    priority: reservation.priority,
  })
  context.running.set(ref.uuid, makeRunningStatus(job, limitSeconds))
  const report = await runAlgorithm({
    algorithm: job.algorithm,
    workdir,
    uuid: ref.uuid,
    type: ref.type,
    attempt,
    maxAttempts,
    tube: ref.tube,
    priority: reservation.priority,
    ttrSeconds: reservation.ttrSeconds,
    limitSeconds,
    environment: context.environment,
    maxOutputBytes: context.maxOutputBytes,
    maxScratchBytes: context.maxScratchBytes,
    signal: job.signal,
    onStarted: (pid) => bus.emit({ ...ref, event: 'run_started', attempt, pid }),
    onEnding: (pid, why) => bus.emit({ ...ref, event: 'run_ending', attempt, pid, why }),
  })
  const { outcome, exitCode, signal, durationSeconds } = report
  bus.emit({
    ...ref,
    event: 'run_ended',
    attempt,
    outcome,
    exitCode,
    signal,
    durationSeconds,
    survivors: report.kill?.survivors ?? [],
    error: outcome.kind === 'success' ? null : reasonOf(outcome),
    stdout: await readTail(workdir.stdout, SHOWN_STDOUT_BYTES + 1).then(lastLines, () => ''),
  })
  return report
}

/** Whole lines from the end, for people; all of it is in stdout.log. */
function lastLines(tail: string): string {
  if (Buffer.byteLength(tail) <= SHOWN_STDOUT_BYTES) return tail
  const firstEnd = tail.indexOf('\n')
  const rest = firstEnd < 0 || firstEnd === tail.length - 1 ? '' : tail.slice(firstEnd + 1)
  return `... (more in stdout.log)\n${rest}`
}

function makeRunningStatus(job: Attempt, limitSeconds: number): StatusDocument {
  const { tags } = job.workPackage.header
  const started = new Date()
  return {
    format: DOCUMENT_FORMAT,
    uuid: job.ref.uuid,
    type: job.ref.type,
    state: 'running',
    timestamp: started.toISOString(),
    ...(tags === undefined ? {} : { tags }),
    running: {
      attempt: job.attempt,
      worker: job.context.name,
      started: started.toISOString(),
      deadline: new Date(started.getTime() + limitSeconds * 1000).toISOString(),
    },
    attempts: job.previous,
  }
}

/** Publish before settle: a job leaves the queue only after its result is durable. */
async function conclude(job: Attempt, report: RunReport): Promise<void> {
  const { context, ref, attempt, previous, workdir, heartbeat } = job
  const { outcome } = report
  const { tags } = job.workPackage.header
  const facts: JobFacts = { uuid: ref.uuid, type: ref.type, tags, version: job.algorithm.version, worker: context.name }
  const record = makeAttemptRecord(attempt, context.name, report)
  if (outcome.kind === 'success') {
    const stillOurs = () => heartbeat.isOurs()
    if (!(await publishSuccess(context.stores, facts, previous, record, report, workdir, stillOurs))) {
      return settleJob(job, attempt, { action: 'none' })
    }
    context.bus.emit({
      ...ref,
      event: 'job_published',
      attempt,
      url: context.urlOf(ref.uuid),
      files: report.outputs.length,
    })
    return finishComplete(job, attempt)
  }
  const settlement = settle(outcome, attempt, job.maxAttempts, context.retryRules, Math.random())
  if (settlement.action === 'none' || !(await heartbeat.isOurs())) return settleJob(job, attempt, { action: 'none' })
  const attempts = spendsAttempt(outcome) ? [...previous, record] : previous
  const s3Failure = await publishFailure(context.stores, facts, attempts, settlement, outcome, workdir)
  if (s3Failure !== undefined) context.bus.emit({ ...ref, event: 'publish_failed', store: 's3', error: s3Failure })
  forgetRun(job)
  await settleJob(job, attempt, settlement)
}

/** From here on the published documents tell what became of the job, not our memory of its run. */
function forgetRun({ context, ref }: Job): void {
  context.running.set(ref.uuid, undefined)
}

/** The result is durable here. The job leaves the queue when S3 has it too; until then it waits, and never runs again. */
async function finishComplete(job: Job, attempt: number): Promise<void> {
  forgetRun(job)
  const s3Failure = await copyToS3(job.context.stores, job.ref.uuid)
  if (s3Failure === undefined) return settleJob(job, attempt, { action: 'delete' })
  job.context.bus.emit({ ...job.ref, event: 'publish_failed', store: 's3', error: s3Failure })
  await settleJob(job, attempt, { action: 'release', delaySeconds: S3_RETRY_SECONDS })
}

interface Known {
  readonly uuid?: string | undefined
  readonly type?: string | undefined
  readonly tags?: JobFacts['tags']
}

/** Buries a job that cannot be run at all, with a status document where its uuid can be read. */
async function refuse(hand: Hand, outcome: Outcome, known: Known): Promise<void> {
  const { context, reservation, slot } = hand
  const settlement = settle(outcome, 1, 1, context.retryRules, 0)
  const { uuid, type, tags } = known
  const { ticket, tube } = reservation
  const subject = {
    slot,
    ticket,
    tube,
    ...(uuid === undefined ? {} : { uuid }),
    ...(type === undefined ? {} : { type }),
  }
  // A uuid that has documents already belongs to another job: this one must not speak in its name.
  if (isUuid(uuid) && !(await isKnown(hand, uuid))) {
    const facts: JobFacts = { uuid, type: type ?? null, tags, version: '', worker: context.name }
    const s3Failure = await publishFailure(context.stores, facts, [], settlement, outcome, undefined)
    if (s3Failure !== undefined)
      context.bus.emit({ ...subject, event: 'publish_failed', store: 's3', error: s3Failure })
  }
  context.bus.emit({ ...subject, event: 'job_refused', outcome, error: reasonOf(outcome) })
  if (await tellBroker(hand, settlement, uuid)) context.onSettled(settlement)
}

async function isKnown(hand: Hand, uuid: string): Promise<boolean> {
  const { status, isComplete } = await readHistory(hand.context.stores, uuid, false)
  return isComplete || (status !== undefined && status.state !== 'failed')
}

async function settleJob(job: Job, attempt: number, settlement: Settlement): Promise<void> {
  if (!(await tellBroker(job, settlement, job.ref.uuid))) return
  const durationSeconds = Math.round(performance.now() - job.reservedAt) / 1000
  job.context.bus.emit({ ...job.ref, event: 'job_settled', attempt, settlement, durationSeconds })
  job.context.onSettled(settlement)
}

/** Tells the broker. False when the job was no longer ours to settle; throws when the connection is gone. */
async function tellBroker(hand: Hand, settlement: Settlement, uuid: string | undefined): Promise<boolean> {
  const { reservation, context, slot } = hand
  const { priority, ticket } = reservation
  const { action } = settlement
  try {
    if (action === 'delete') await reservation.delete()
    else if (action === 'bury') await reservation.bury(priority)
    else if (action === 'release') await reservation.release({ priority, delaySeconds: settlement.delaySeconds })
    return true
  } catch (error) {
    if (!(error instanceof QueueError)) throw error
    const gone = error.code === 'not_found'
    const subject = { slot, ticket, ...(uuid === undefined ? {} : { uuid }) }
    context.bus.emit({ event: 'settle_failed', ...subject, action, error: error.message, gone })
    if (!gone) throw error
    return false
  }
}
