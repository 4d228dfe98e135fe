/** When a run must be gone at the latest. Pure; all times are seconds since boot. */

export interface Interval {
  readonly from: number
  /** undefined while it lasts */
  readonly to: number | undefined
}

export interface RunTimes {
  readonly started: number
  readonly ttrSeconds: number
}

export interface WorkerTimes {
  /** when the torture had stopped it (SIGSTOP) */
  readonly stops: readonly Interval[]
  /** when the torture killed it (SIGKILL) */
  readonly killedAt: number | undefined
}

/** What is promised: nothing of a run is alive later than TTR + GRACE_TIME + this. */
const PROMISED_SECONDS = 2
/** A worker that was killed takes its runs along within this time. */
const ORPHAN_SECONDS = 2
/** A worker that was stopped has this time to catch up. */
const WAKE_SECONDS = 2

/** Times in which those who should have acted got no processor. */
export interface Stalls {
  /** the worker, or all of us */
  readonly worker: readonly Interval[]
  /** who ends the runs of a worker that was killed, or all of us */
  readonly guard: readonly Interval[]
}

/** @returns Infinity while it cannot be told, because the worker is stopped */
export function deadlineOf(run: RunTimes, graceSeconds: number, worker: WorkerTimes, stalls: Stalls): number {
  const limit = run.started + run.ttrSeconds + graceSeconds + PROMISED_SECONDS
  const stops = worker.stops.map(({ from, to }) => ({ from, to: to === undefined ? undefined : to + WAKE_SECONDS }))
  const alive = extend(limit, run.started, [...stalls.worker, ...stops])
  if (worker.killedAt === undefined) return alive
  const since = Math.max(worker.killedAt, run.started)
  return Math.min(alive, extend(since + ORPHAN_SECONDS, since, stalls.guard))
}

/** Moves a deadline by the time between `since` and the deadline, as it is by then, that lies within pauses. */
function extend(deadline: number, since: number, pauses: readonly Interval[]): number {
  let extended = deadline
  /** up to here pauses are counted: where two overlap, time passes once */
  let counted = since
  for (const { from, to } of [...pauses].sort((a, b) => a.from - b.from)) {
    if (from >= extended) break
    if (to === undefined) return Number.POSITIVE_INFINITY
    extended += Math.max(0, to - Math.max(from, counted))
    counted = Math.max(counted, to)
  }
  return extended
}
