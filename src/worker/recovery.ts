/**
 * What dead workers left: processes, run directories, attempts that were begun and never ended. Done at the start of a
 * worker, and when a job comes whose attempt is open. Several workers may do it at once: ending is idempotent, and the
 * tracker takes each end once.
 */

import { basename } from 'node:path'
import type { KillReceipt } from '../job/outcome.ts'
import { type AttemptRecord, parseStatus } from '../job/result.ts'
import type { Stores } from '../publish.ts'
import type { Bus } from '../report/events.ts'
import {
  type DeadWorkshop,
  endOrphans,
  endRunOf,
  endWorkshop,
  findDeadWorkshops,
  readRunEvidence,
  removeWorkshop,
  stateOfWorker,
} from '../run/workshop.ts'
import { type JobState, type TrackedAttempt, type Tracker, TrackerError } from '../tracker/tracker.ts'

export interface Recovery {
  /** Whether the worker with that workshop lives. */
  stateOf(workerId: string): Promise<'alive' | 'dead' | 'unknown'>
  /** Ends and accounts for all that dead workers left. What withstands is told, and left for later. @throws TrackerError */
  recoverAll(): Promise<void>
  /** The same for one worker; does nothing when it lives. @throws TrackerError */
  recoverWorker(workerId: string): Promise<void>
  /** Ends the processes of one run, whoever started it. */
  endRun(attempt: TrackedAttempt): Promise<KillReceipt | undefined>
  /** Ends an open attempt in the tracker. An `abandoned` one counts. @throws TrackerError */
  close(attempt: TrackedAttempt, outcome: 'abandoned' | 'worker_fault', why: string): Promise<void>
}

interface Evidence {
  /** the worker as documents name it */
  readonly worker?: string
  readonly stderrTail: string
  readonly kill: KillReceipt | undefined
}

export interface RecoveryOptions {
  readonly tracker: Tracker
  readonly stores: Stores
  /** RESULT_BASEDIR/.work */
  readonly workBase: string
  /** who does it; never recovered */
  readonly workerId: string
  readonly bus: Bus
}

export function makeRecovery(options: RecoveryOptions): Recovery {
  const { tracker, workBase } = options
  const underWay = new Map<string, Promise<void>>()

  async function recoverOnce(dead: DeadWorkshop): Promise<void> {
    const doing = underWay.get(dead.id) ?? recover(options, dead).finally(() => underWay.delete(dead.id))
    underWay.set(dead.id, doing)
    await doing
  }

  async function recoverFound(workerId?: string): Promise<void> {
    await survive(options.bus, workBase, async () => {
      for (const dead of await findDeadWorkshops(workBase)) {
        if (workerId === undefined || dead.id === workerId)
          await survive(options.bus, dead.path, () => recoverOnce(dead))
      }
    })
    await closeOrphans(workerId)
  }

  /**
   * Whose workshop is gone: removed by hand, by a run, or by a worker that died before it could account for it. One that is there
   * holds the evidence: its worker died since we looked, or another worker is at it.
   */
  async function closeOrphans(workerId?: string): Promise<void> {
    const ended = new Set<string>()
    for (const attempt of await tracker.openAttempts(workerId)) {
      const { worker } = attempt
      if (worker === options.workerId || (await stateOfWorker(workBase, worker)) !== 'dead') continue
      await survive(options.bus, describe(attempt), async () => {
        // Where they cannot be listed, which was told, there is no evidence to be had.
        const found = ended.has(worker) ? [] : await findDeadWorkshops(workBase).catch(() => [])
        const dead = found.find(({ id }) => id === worker)
        if (dead !== undefined) await recoverOnce(dead)
        else if (!ended.has(worker)) await endOrphans(workBase, worker)
        ended.add(worker)
        await closeAttempt(options, attempt, 'abandoned', 'its worker died in the middle of it')
      })
    }
  }

  return {
    stateOf: (workerId) => stateOfWorker(workBase, workerId),
    close: (attempt, outcome, why) => closeAttempt(options, attempt, outcome, why),
    endRun: (attempt) => endRunOf(workBase, attempt.worker, attempt.run, attempt.type),
    recoverAll: () => recoverFound(),
    recoverWorker: (workerId) => recoverFound(workerId),
  }
}

function describe({ uuid, attempt }: TrackedAttempt): string {
  return `attempt ${attempt} of ${uuid}`
}

/** A run may leave anything in any state: what cannot be accounted for keeps nothing else from it. @throws TrackerError */
async function survive(bus: Bus, what: string, work: () => Promise<void>): Promise<boolean> {
  try {
    await work()
    return true
  } catch (error) {
    if (error instanceof TrackerError) throw error
    const why = error instanceof Error ? error.message : String(error)
    bus.emit({ event: 'worker_problem', problem: `what a dead worker left, ${what}, waits: ${why}` })
    return false
  }
}

async function recover(options: RecoveryOptions, dead: DeadWorkshop): Promise<void> {
  const { tracker, bus } = options
  const { receipt } = await endWorkshop(dead)
  const name = dead.owner?.name ?? dead.id
  const attempts = await tracker.openAttempts(dead.id)
  let closed = 0
  for (const attempt of attempts) {
    const isClosed = await survive(bus, describe(attempt), async () => {
      const run = dead.runs.find(({ path }) => basename(path) === attempt.run)
      const { stderrTail } = run === undefined ? { stderrTail: '' } : await readRunEvidence(run)
      const kill = receipt.signals.length > 0 ? receipt : undefined
      const why = `its worker (${name}) died in the middle of it`
      await closeAttempt(options, attempt, 'abandoned', why, { worker: name, stderrTail, kill })
    })
    if (isClosed) closed++
  }
  await tracker.outbox.giveBack(dead.id)
  const { survivors } = receipt
  // With survivors, or evidence that is still needed, it stays, and is found again.
  if (survivors.length === 0 && closed === attempts.length) await removeWorkshop(dead)
  bus.emit({ event: 'worker_recovered', worker: name, attempts: closed, survivors })
}

async function closeAttempt(
  { tracker, stores }: RecoveryOptions,
  attempt: TrackedAttempt,
  outcome: 'abandoned' | 'worker_fault',
  why: string,
  evidence: Evidence = { stderrTail: '', kill: undefined },
): Promise<void> {
  const ended = new Date()
  await stores.local.tidy(attempt.uuid)
  const { state, success } = await findPublished(stores, attempt)
  await tracker.end(attempt.uuid, attempt.fence, {
    ended: success?.ended ?? ended.toISOString(),
    counts: success !== undefined || outcome === 'abandoned',
    record: JSON.stringify(success ?? makeRecord(attempt, outcome, why, ended, evidence)),
    state,
    outbox: state !== 'open' && stores.s3 !== undefined,
  })
}

/** What was published of it. */
interface Published {
  readonly state: JobState
  /** the attempt's own record, when it is what made the job complete */
  readonly success?: AttemptRecord | undefined
}

/**
 * It may have come to its end, and died before it could write so; a power failure undoes what was written last. A failure
 * that is older was that of an earlier life.
 */
async function findPublished({ local }: Stores, { uuid, attempt, started }: TrackedAttempt): Promise<Published> {
  const result = await local.read(uuid, 'result.json')
  const status = parseStatus((await local.read(uuid, 'status.json')) ?? '')
  if (result !== undefined) {
    const last = status?.state === 'complete' ? status.attempts.at(-1) : undefined
    return { state: 'complete', success: last?.attempt === attempt && last.started >= started ? last : undefined }
  }
  return { state: status?.state === 'failed' && status.timestamp >= started ? 'failed' : 'open' }
}

function makeRecord(
  attempt: TrackedAttempt,
  outcome: 'abandoned' | 'worker_fault',
  error: string,
  ended: Date,
  { worker, stderrTail, kill }: Evidence,
): AttemptRecord {
  return {
    attempt: attempt.attempt,
    worker: worker ?? attempt.worker,
    started: attempt.started,
    ended: ended.toISOString(),
    duration_seconds: Math.max(0, Math.round(ended.getTime() - Date.parse(attempt.started)) / 1000),
    outcome,
    exit_code: null,
    error,
    stderr_tail: stderrTail,
    ...(kill === undefined ? {} : { kill }),
  }
}
