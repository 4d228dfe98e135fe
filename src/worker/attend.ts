/**
 * What a slot does with one reserved job: parse, account, run, publish, settle.
 *
 * The races that matter here:
 * - The reservation lasts one TTR; a hold touches it for as long as the job is in our hands, and takes it back when the
 *   connection breaks. When it cannot, the job may be with another worker: the run is ended, its output is discarded,
 *   and the broker is told nothing.
 * - An attempt is open in the tracker from before its process starts until its outcome is durable: a worker that shares
 *   the tracker gives such a job back. A worker that dies leaves it open, which is how it is found.
 * - Right before the commit point the reservation is touched once more, and the tracker is asked whether the attempt is
 *   still the newest: who lost one of them does not publish.
 * - A job that was published but not deleted (a crash in between) comes again: it is deleted, not run.
 */

import { type Outcome, reasonOf, type Settlement, settle, spendsAttempt } from '../job/outcome.ts'
import { isUuid, PackageError, parsePackage, type WorkPackage } from '../job/package.ts'
import { type AttemptRecord, DOCUMENT_FORMAT, type StatusDocument } from '../job/result.ts'
import {
  type JobFacts,
  type JobHistory,
  makeAttemptRecord,
  publishFailure,
  publishSuccess,
  readHistory,
} from '../publish.ts'
import { QueueError, type Reservation } from '../queue/queue.ts'
import type { JobRef } from '../report/events.ts'
import type { Algorithm } from '../run/algorithm.ts'
import type { Launcher } from '../run/launcher.ts'
import { type RunEnd, type RunReport, runAlgorithm, SHOWN_STDOUT_BYTES } from '../run/run.ts'
import { runWarm } from '../run/warm.ts'
import type { WarmSeats, WarmWorkdir } from '../run/warm-seat.ts'
import { createWorkdir, isKnownBare, removeWorkdir, type Workdir } from '../run/workdir.ts'
import { StoreError } from '../store/store.ts'
import { TrackerError } from '../tracker/tracker.ts'
import { type Account, firstTurn, type Turn, takeAccount } from './account.ts'
import type { Hold } from './hold.ts'
import type { SlotContext } from './worker.ts'

/** A job that is in hand elsewhere waits this long: short enough for a slot that takes back what a broken line lost. */
const TWIN_DELAY_SECONDS = 1
/** The copies of a failed attempt may take this long before the job is settled; the outbox goes on without us. */
const FAILURE_PATIENCE_MS = 3_000
const MOST_FREE_FAULTS = 10

/** What a slot is doing, for people. */
export interface Doing {
  uuid: string | undefined
  type: string | undefined
  step: string
  since: Date
  /** how often the job in hand met a fault of this machine before */
  faults: number
}

/** A reservation in the hands of a slot. */
export interface Hand {
  readonly context: SlotContext
  readonly slot: number
  readonly reservation: Reservation
  readonly hold: Hold
  readonly doing: Doing
  readonly launcher: Launcher
  /** the slot's processes of warm algorithms */
  readonly warm: WarmSeats
  /** ends the run; its reason is a RunEnd */
  readonly signal: AbortSignal
  /** performance.now() */
  readonly takenAt: number
  /** Called when the deletion was sent, if little is left to do after it. */
  readonly onDeleting?: () => void
}

interface Job extends Hand {
  readonly ref: JobRef
  readonly workPackage: WorkPackage
}

interface Attempt extends Job {
  readonly algorithm: Algorithm
  readonly workdir: Workdir | WarmWorkdir
  readonly turn: Turn
  /** the fencing token of this attempt */
  readonly fence: number
  readonly started: Date
  /** TTR + GRACE_TIME as they were at its start: a reload changes later ones */
  readonly limitSeconds: number
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
  hand.doing.uuid = uuid
  hand.doing.type = type
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
    const subject = { slot, ticket: reservation.ticket, ...(uuid === undefined ? {} : { uuid }) }
    if (error instanceof StoreError)
      context.bus.emit({ event: 'publish_failed', ...subject, store: 'local', error: detail })
    else context.bus.emit({ event: 'slot_fault', ...subject, error: detail, retrySeconds: 1 })
    const faults = hand.doing.faults + 1
    const settlement = settle({ kind: 'worker_fault', detail }, faults, 1, context.retryRules, Math.random())
    await tellBroker(hand, settlement, uuid)
    await context.isMachineAtFault(detail)
    return true
  }
}

async function work(job: Job): Promise<void> {
  const { context, reservation, ref, workPackage, doing } = job
  const { header } = workPackage
  const history = await readHistory(context.stores, ref.uuid, reservation.reserves > 1)
  if (history.isComplete) return finishEarlier(job)
  const algorithm = context.catalogue().algorithms.get(ref.type)
  if (algorithm === undefined) {
    const outcome: Outcome = { kind: 'unknown_type', detail: context.unknownType(ref.type) }
    return refuse(job, outcome, { uuid: ref.uuid, type: ref.type, tags: header.tags })
  }
  doing.step = 'looking at what was tried before'
  const maxAttempts = header.max_attempts ?? algorithm.maxAttempts ?? context.maxAttempts
  // The tracker is not asked first about a job that nobody has touched: it refuses if it knows it all the same.
  if (reservation.reserves === 1 && history.status === undefined) {
    if (await begin(job, algorithm, firstTurn(maxAttempts))) return
  }
  const account = await takeAccount(context, ref.uuid, reservation, history, maxAttempts)
  if (account.kind !== 'begin') return endWithoutRun(job, account, history)
  // It may have been completed since its history was read. Who completes it from now on began after the account was
  // taken, which `begin` sees.
  if ((await readHistory(context.stores, ref.uuid, false)).isComplete) return finishEarlier(job)
  if (await begin(job, algorithm, account.turn)) return
  context.bus.emit({ ...ref, event: 'job_busy', worker: 'another worker' })
  return settleJob(job, 0, { action: 'release', delaySeconds: TWIN_DELAY_SECONDS })
}

/** Its result is there: it was published before its worker could settle it, or it was put twice. */
async function finishEarlier(job: Job): Promise<void> {
  const { context, ref } = job
  await context.stores.local.tidy(ref.uuid)
  const tracked = await context.tracker.read(ref.uuid)
  if (tracked?.state !== 'complete') {
    await context.tracker.mark(ref.uuid, ref.type, 'complete', context.outbox !== undefined)
  }
  context.bus.emit({ ...ref, event: 'job_already_complete' })
  await finishComplete(job, 0)
}

async function endWithoutRun(
  job: Job,
  account: Exclude<Account, { kind: 'begin' }>,
  history: JobHistory,
): Promise<void> {
  const { context, ref } = job
  switch (account.kind) {
    case 'busy':
      context.bus.emit({ ...ref, event: 'job_busy', worker: account.worker })
      return settleJob(job, 0, { action: 'release', delaySeconds: TWIN_DELAY_SECONDS })
    case 'unburied':
      return settleJob(job, history.status?.attempts.at(-1)?.attempt ?? 0, { action: 'bury', reason: account.reason })
    case 'exhausted': {
      const { outcome, previous } = account
      const settlement = settle(outcome, previous.length, previous.length, context.retryRules, 0)
      if (!(await publishBurial(job, factsOf(job, ''), previous, settlement, outcome))) return leave(job)
      await context.tracker.mark(ref.uuid, ref.type, 'failed', context.outbox !== undefined)
      context.bus.emit({ ...ref, event: 'job_refused', outcome, error: reasonOf(outcome) })
      return settleJob(job, previous.length, settlement)
    }
    default:
      throw new TypeError(`unhandled ${JSON.stringify(account satisfies never)}`)
  }
}

/** Nothing was published: the reservation was lost meanwhile, or the job is complete. */
async function leave(job: Job): Promise<void> {
  const { isComplete } = await readHistory(job.context.stores, job.ref.uuid, false)
  return isComplete ? finishEarlier(job) : settleJob(job, 0, { action: 'none' })
}

/**
 * Where its own directory is what cannot be written to (an algorithm saw to that), the job is buried all the same.
 * @returns false when nothing was published: the job is complete, or no longer ours
 */
async function publishBurial(
  hand: Hand,
  facts: JobFacts,
  attempts: readonly AttemptRecord[],
  settlement: Settlement,
  outcome: Outcome,
): Promise<boolean> {
  const { context, hold, slot, reservation } = hand
  const isOurs = () => hold.isOurs()
  try {
    return await publishFailure(context.stores, facts, attempts, settlement, outcome, undefined, isOurs)
  } catch (error) {
    if (!(error instanceof StoreError) || (await context.isMachineAtFault(error.message))) throw error
    const subject = { slot, ticket: reservation.ticket, uuid: facts.uuid }
    context.bus.emit({ event: 'publish_failed', ...subject, store: 'local', error: error.message })
    return true
  }
}

/**
 * Opens the attempt, runs it, and sees that it is closed whatever happens.
 * @returns false when it could not be opened: the job has moved on since it was looked at
 */
async function begin(job: Job, algorithm: Algorithm, turn: Turn): Promise<boolean> {
  const { context, reservation, ref } = job
  job.doing.faults = turn.faults
  const started = new Date()
  const limitSeconds = reservation.ttrSeconds + context.graceSeconds
  const runId = `${ref.uuid}.${turn.attempt}.${started.getTime().toString(36)}`
  const start = {
    ...{ uuid: ref.uuid, type: ref.type, ticket: ref.ticket, tube: ref.tube },
    ...{ attempt: turn.attempt, maxAttempts: turn.maxAttempts, worker: context.workerId, run: runId },
    started: started.toISOString(),
    deadline: deadlineOf({ started, limitSeconds }),
  }
  const fence = await context.tracker.begin(start, turn.fence)
  if (fence === undefined) return false
  let workdir: Workdir | WarmWorkdir | undefined
  try {
    // Only now: a directory that refuses is a fault that is counted, so that the wait grows.
    await context.stores.local.prepare(ref.uuid)
    const place = await openWorkdir(job, algorithm, runId)
    workdir = place
    // The next job would wait in our hands, while others are idle, for as long as it takes to remove what was left.
    const onDeleting = () => isQuicklyClosed(place) && job.onDeleting?.()
    const attempt: Attempt = { ...job, onDeleting, algorithm, workdir, turn, fence, started, limitSeconds }
    await conclude(attempt, await run(attempt))
    return true
  } catch (error) {
    if (!(error instanceof QueueError)) await closeFaulty(job, start, fence, error, turn)
    throw error
  } finally {
    if (workdir !== undefined) await ('seat' in workdir ? workdir.close() : removeWorkdir(workdir, context.spares))
  }
}

async function openWorkdir(
  { context, warm, workPackage }: Job,
  algorithm: Algorithm,
  runId: string,
): Promise<Workdir | WarmWorkdir> {
  const settings = context.settingsFor(algorithm)
  if (algorithm.warm !== undefined) return warm.openWorkdir(algorithm, settings)
  return createWorkdir(context.workshop, runId, workPackage.payloadJson, settings, algorithm.user, context.spares)
}

function isQuicklyClosed(workdir: Workdir | WarmWorkdir): boolean {
  return 'seat' in workdir ? workdir.isEmpty : isKnownBare(workdir)
}

/**
 * Where even the tracker does not answer, the attempt stays open, and the next look at the job closes it. A job that
 * meets faults again and again on a machine that does well for others spends attempts at last: it would run for ever.
 */
async function closeFaulty(
  { context, ref }: Job,
  start: { attempt: number; started: string },
  fence: number,
  error: unknown,
  { faults }: Turn,
): Promise<void> {
  const ended = new Date().toISOString()
  const message = error instanceof Error ? error.message : String(error)
  const counts = faults >= MOST_FREE_FAULTS && !(await context.isMachineAtFault(message))
  const record: AttemptRecord = {
    ...{ attempt: start.attempt, worker: context.name, started: start.started, ended, duration_seconds: 0 },
    ...{ outcome: 'worker_fault', exit_code: null, stderr_tail: '' },
    error: message,
  }
  const end = { ended, counts, record: JSON.stringify(record), state: 'open', outbox: false } as const
  await context.tracker.end(ref.uuid, fence, end).catch((cause: unknown) => {
    if (!(cause instanceof TrackerError)) throw cause
  })
}

async function run(job: Attempt): Promise<RunReport> {
  const { context, reservation, ref, workPackage, turn, workdir, doing } = job
  const { attempt, maxAttempts } = turn
  const { bus } = context
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
  context.running.set(ref.uuid, makeRunningStatus(job))
  doing.step = `running attempt ${attempt} of ${maxAttempts}`
  const request = {
    algorithm: job.algorithm,
    workerId: context.workerId,
    uuid: ref.uuid,
    type: ref.type,
    attempt,
    maxAttempts,
    tube: ref.tube,
    priority: reservation.priority,
    ttrSeconds: reservation.ttrSeconds,
    limitSeconds: job.limitSeconds,
    environment: context.environment,
    groups: context.groups,
    launcher: job.launcher,
    maxOutputBytes: context.maxOutputBytes,
    maxScratchBytes: context.maxScratchBytes,
    signal: job.signal,
    onStarted: (pid: number) => {
      doing.step = `running attempt ${attempt} of ${maxAttempts}, pid ${pid}`
      bus.emit({ ...ref, event: 'run_started', attempt, pid })
    },
    onEnding: (pid: number, why: RunEnd['kind']) => bus.emit({ ...ref, event: 'run_ending', attempt, pid, why }),
  }
  const report = await ('seat' in workdir
    ? runWarm({ ...request, workdir, payloadJson: workPackage.payloadJson })
    : runAlgorithm({ ...request, workdir }))
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
    // What a warm process prints are answers.
    stdout: lastLines(report.stdoutTail),
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

function deadlineOf({ started, limitSeconds }: Pick<Attempt, 'started' | 'limitSeconds'>): string {
  return new Date(started.getTime() + limitSeconds * 1000).toISOString()
}

function makeRunningStatus(job: Attempt): StatusDocument {
  const { tags } = job.workPackage.header
  return {
    format: DOCUMENT_FORMAT,
    uuid: job.ref.uuid,
    type: job.ref.type,
    state: 'running',
    timestamp: job.started.toISOString(),
    ...(tags === undefined ? {} : { tags }),
    running: {
      attempt: job.turn.attempt,
      worker: job.context.name,
      started: job.started.toISOString(),
      deadline: deadlineOf(job),
    },
    attempts: job.turn.previous,
  }
}

/** Publish before settle: a job leaves the queue only after its result is durable. */
async function conclude(job: Attempt, report: RunReport): Promise<void> {
  const { context, ref, turn, workdir, doing } = job
  const { attempt, previous } = turn
  const { outcome } = report
  const record = makeAttemptRecord(attempt, context.name, report)
  const facts = factsOf(job, job.algorithm.version)
  doing.step = 'publishing'
  if (outcome.kind === 'success') {
    // Asked twice: before published names change, and right before the commit.
    const stillOurs = () => (job.hold.isFresh ? holdsAttempt(job) : holdsBoth(job))
    const isPublished = await publishSuccess(context.stores, facts, previous, record, report, workdir, stillOurs)
    if (!isPublished) return discard(job, record)
    await endAttempt(job, record, 'complete', true)
    const files = report.outputs.length
    context.bus.emit({ ...ref, event: 'job_published', attempt, url: context.urlOf(ref.uuid), files })
    return finishComplete(job, attempt)
  }
  const counted = outcome.kind === 'worker_fault' ? turn.faults + 1 : attempt
  const settlement = settle(outcome, counted, turn.maxAttempts, context.retryRules, Math.random())
  if (settlement.action === 'none') return discard(job, record)
  const spent = spendsAttempt(outcome)
  const attempts = spent ? [...previous, record] : previous
  const stillOurs = () => holdsBoth(job)
  if (!(await publishFailure(context.stores, facts, attempts, settlement, outcome, workdir, stillOurs))) {
    return discard(job, record)
  }
  await endAttempt(job, record, settlement.action === 'bury' ? 'failed' : 'open', spent)
  forgetRun(job)
  await context.outbox?.delivered(ref.uuid, FAILURE_PATIENCE_MS, job.signal)
  await settleJob(job, attempt, settlement)
  if (outcome.kind === 'worker_fault') await context.isMachineAtFault(outcome.detail)
}

/** The reservation and the newest attempt. */
async function holdsBoth(job: Attempt): Promise<boolean> {
  return (await job.hold.isOurs()) && (await holdsAttempt(job))
}

function holdsAttempt({ context, ref, fence }: Attempt): Promise<boolean> {
  return context.tracker.holds(ref.uuid, fence)
}

async function endAttempt(
  job: Attempt,
  record: AttemptRecord,
  state: 'open' | 'complete' | 'failed',
  counts: boolean,
): Promise<void> {
  const { context, ref, fence } = job
  const outbox = counts && context.outbox !== undefined
  const ended = await context.tracker.end(ref.uuid, fence, {
    ended: record.ended,
    counts,
    record: JSON.stringify(record),
    state,
    outbox,
  })
  // Taken for dead between the check and now: what is committed counts all the same.
  if (!ended && state === 'complete') await context.tracker.mark(ref.uuid, ref.type, state, outbox)
  if (outbox) context.outbox?.wake()
}

/**
 * It is another's job now: its output is dropped. The broker is told nothing, unless the reservation is ours all the same
 * (another attempt of the job was published, or begun): the next look at the job sees what it is.
 */
async function discard(job: Attempt, record: AttemptRecord): Promise<void> {
  const { context, ref, hold, turn } = job
  // One that had all its time has spent it, lost or not: it may be what holds up its worker.
  const isSpent = record.outcome === 'timed_out'
  const isPlain = isSpent || record.outcome === 'interrupted'
  await endAttempt(job, isPlain ? record : { ...record, outcome: 'lost' }, 'open', isSpent)
  forgetRun(job)
  if (!(await hold.isOurs())) return settleJob(job, turn.attempt, { action: 'none' })
  const { isComplete } = await readHistory(context.stores, ref.uuid, false)
  if (isComplete) return finishEarlier(job)
  return settleJob(job, turn.attempt, { action: 'release', delaySeconds: TWIN_DELAY_SECONDS })
}

/** From here on the published documents tell what became of the job, not our memory of its run. */
function forgetRun({ context, ref }: Job): void {
  context.running.set(ref.uuid, undefined)
}

/** The result is durable here. The job leaves the queue when S3 has it, or when the outbox answers for it. */
async function finishComplete(job: Job, attempt: number): Promise<void> {
  const { context, ref, doing } = job
  forgetRun(job)
  doing.step = 'waiting for S3'
  await context.outbox?.delivered(ref.uuid, context.s3PatienceSeconds * 1000, job.signal)
  await settleJob(job, attempt, { action: 'delete' })
}

interface Known {
  readonly uuid?: string | undefined
  readonly type?: string | undefined
  readonly tags?: JobFacts['tags']
}

function factsOf(job: Job, version: string): JobFacts {
  const { tags } = job.workPackage.header
  return { uuid: job.ref.uuid, type: job.ref.type, tags, version, worker: job.context.name }
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
  const earlier = isUuid(uuid) ? await earlierAttempts(hand, uuid) : undefined
  if (uuid !== undefined && earlier !== undefined) {
    const facts: JobFacts = { uuid, type: type ?? null, tags, version: '', worker: context.name }
    const isPublished = await publishBurial(hand, facts, earlier, settlement, outcome)
    if (isPublished && context.outbox !== undefined) {
      await context.tracker.outbox.put(uuid)
      context.outbox.wake()
    }
  }
  context.bus.emit({ ...subject, event: 'job_refused', outcome, error: reasonOf(outcome) })
  if (await tellBroker(hand, settlement, uuid)) context.onSettled(settlement)
}

/** Those of this job, or of one of that uuid that failed for good; undefined when another one of that uuid did not. */
async function earlierAttempts(
  { context, reservation }: Hand,
  uuid: string,
): Promise<readonly AttemptRecord[] | undefined> {
  const { status, isComplete } = await readHistory(context.stores, uuid, false)
  const { state, attempts = [] } = (await context.tracker.read(uuid)) ?? {}
  if (isComplete || context.running.get(uuid) !== undefined) return undefined
  if (attempts.some(({ ended }) => ended === undefined)) return undefined
  const isSameJob = attempts.at(-1)?.ticket === reservation.ticket
  if (state === 'open' && attempts.length > 0 && !isSameJob) return undefined
  if (status === undefined) return []
  return status.state === 'failed' || isSameJob ? status.attempts : undefined
}

async function settleJob(job: Job, attempt: number, settlement: Settlement): Promise<void> {
  job.doing.step = 'settling'
  if (!(await tellBroker(job, settlement, job.ref.uuid))) return
  const durationSeconds = Math.round(performance.now() - job.takenAt) / 1000
  job.context.bus.emit({ ...job.ref, event: 'job_settled', attempt, settlement, durationSeconds })
  job.context.onSettled(settlement)
}

/** Tells the broker. False when the job was no longer ours to settle; throws when the connection is gone. */
async function tellBroker(hand: Hand, settlement: Settlement, uuid: string | undefined): Promise<boolean> {
  const { reservation, hold, context, slot } = hand
  const { priority, ticket } = reservation
  const { action } = settlement
  if (action === 'none') return true
  const subject = { slot, ticket, ...(uuid === undefined ? {} : { uuid }) }
  try {
    const isTold = await hold.settle((held) => {
      if (action === 'delete') {
        const deleted = held.delete()
        hand.onDeleting?.()
        return deleted
      }
      if (action === 'bury') return held.bury(priority)
      return held.release({ priority, delaySeconds: settlement.delaySeconds })
    })
    if (!isTold) {
      const error = `cannot ${action} job ${ticket}: it is not there, or no longer ours`
      context.bus.emit({ event: 'settle_failed', ...subject, action, error, gone: true })
    }
    return isTold
  } catch (error) {
    if (!(error instanceof QueueError)) throw error
    context.bus.emit({ event: 'settle_failed', ...subject, action, error: error.message, gone: false })
    throw error
  }
}
