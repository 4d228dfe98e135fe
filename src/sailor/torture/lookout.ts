/**
 * Looks at /proc all the time: which runs are alive, of which workers, for how long, and two of one job at once.
 *
 * What a look finds too late it notes once, and a while later ends it: a torture of hours must not drown in what it was
 * to find.
 */

import { isAlive, TICKS_PER_SECOND, uptimeSeconds } from '../process.ts'
import { deadlineOf, type Interval, type WorkerTimes } from './deadline.ts'
import { makeHunger } from './hunger.ts'
import { endProcess, findMarked, type Marked } from './marked.ts'
import type { Finding } from './verdict.ts'

const LOOK_MS = 250
/** After a fault that may leave a run without its worker, or a job with two. */
const CLOSE_LOOK_MS = 50
const CLOSE_SECONDS = 3
/** A look that comes so much later than it should means that we had no processor. */
const STALL_SECONDS = 0.1
/** From the finding to the end of what was found. */
const MERCY_SECONDS = 8

interface Run {
  readonly uuid: string
  readonly attempt: string
  readonly worker: string
  readonly ttrSeconds: number
  started: number
  processes: Marked[]
  notedAt: number | undefined
}

export interface LookoutOptions {
  readonly base: string
  readonly graceSeconds: number
  readonly timesOf: (worker: string) => WorkerTimes | undefined
}

export interface Lookout {
  readonly lateKills: Finding[]
  readonly overlaps: Finding[]
  /** runs that were seen alive, all in all */
  readonly runCount: () => number
  /** longest time that a run was seen alive beyond TTR + GRACE_TIME, in seconds, pauses not taken off */
  readonly latestSeconds: () => number
  readonly stalledSeconds: () => number
  /** Looks more often for some seconds. */
  lookClosely(): void
  stop(): void
}

export function startLookout(options: LookoutOptions): Lookout {
  const runs = new Map<string, Run>()
  const settled = new Map<number, { ticks: number; marked: Marked | undefined }>()
  const stalls: Interval[] = []
  const hunger = makeHunger()
  const lateKills: Finding[] = []
  const overlaps: Finding[] = []
  const overlapping = new Set<string>()
  let latest = 0
  let due = uptimeSeconds()
  let closeUntil = 0
  let timer: NodeJS.Timeout
  const look = () => {
    const now = uptimeSeconds()
    if (now - due > STALL_SECONDS) stalls.push({ from: due, to: now })
    const marked = findMarked(options.base, settled)
    hunger.note(marked, now)
    const alive = sortIntoRuns(marked, runs)
    for (const run of alive) {
      const times = options.timesOf(run.worker)
      if (times === undefined) continue
      latest = Math.max(latest, now - run.started - run.ttrSeconds - options.graceSeconds)
      judge(
        run,
        now,
        deadlineOf(run, options.graceSeconds, times, hunger.stallsOf(run.worker, stalls)),
        times,
        lateKills,
      )
    }
    noteOverlaps(alive, overlapping, overlaps)
  }
  const lookAgain = () => {
    look()
    const now = uptimeSeconds()
    const pauseMs = now < closeUntil ? CLOSE_LOOK_MS : LOOK_MS
    due = now + pauseMs / 1000
    timer = setTimeout(lookAgain, pauseMs)
  }
  timer = setTimeout(lookAgain, LOOK_MS)
  return {
    lateKills,
    overlaps,
    runCount: () => runs.size,
    latestSeconds: () => Math.round(latest * 10) / 10,
    stalledSeconds: () => Math.round(stalls.reduce((sum, { from, to }) => sum + ((to ?? from) - from), 0) * 10) / 10,
    lookClosely: () => {
      closeUntil = uptimeSeconds() + CLOSE_SECONDS
      clearTimeout(timer)
      due = uptimeSeconds()
      timer = setTimeout(lookAgain, 0)
    },
    stop: () => clearTimeout(timer),
  }
}

function judge(run: Run, now: number, deadline: number, times: WorkerTimes, lateKills: Finding[]): void {
  if (run.notedAt !== undefined) {
    if (now - run.notedAt > MERCY_SECONDS) for (const { pid, startTicks } of run.processes) endProcess(pid, startTicks)
    return
  }
  if (now <= deadline) return
  // The look at the others took its time: who is gone by now is not late.
  const still = run.processes.filter(({ pid, startTicks }) => isAlive(pid, startTicks))
  if (still.length === 0) return
  run.notedAt = now
  const age = (now - run.started).toFixed(1)
  const orphaned =
    times.killedAt === undefined ? '' : `, ${(now - times.killedAt).toFixed(1)} s after its worker was killed`
  const detail = `attempt ${run.attempt} of ${run.worker}, TTR ${run.ttrSeconds} s: ${still.length} process(es) (${still.map(({ pid }) => pid).join(' ')}) alive after ${age} s${orphaned}`
  lateKills.push({ id: run.uuid, detail })
}

function sortIntoRuns(marked: readonly Marked[], runs: Map<string, Run>): Run[] {
  const alive = new Set<Run>()
  for (const found of marked) {
    if (found.run === undefined || found.worker === undefined) continue
    const { mark, uuid, attempt, ttrSeconds } = found.run
    const started = found.startTicks / TICKS_PER_SECOND
    const run = runs.get(mark) ?? {
      uuid,
      attempt,
      ttrSeconds,
      worker: found.worker,
      started,
      processes: [],
      notedAt: undefined,
    }
    runs.set(mark, run)
    if (!alive.has(run)) run.processes = []
    alive.add(run)
    run.started = Math.min(run.started, started)
    run.processes.push(found)
  }
  return [...alive]
}

function noteOverlaps(alive: readonly Run[], known: Set<string>, overlaps: Finding[]): void {
  for (const [first, second] of pairsOfOneJob(alive)) {
    const id = [first, second].map(({ processes }) => processes[0]?.run?.mark).join(' ')
    if (known.has(id) || !bothAlive(first, second)) continue
    known.add(id)
    const [one, other] = [first, second].map(({ attempt, worker }) => `attempt ${attempt} (${worker})`)
    overlaps.push({ id: first.uuid, detail: `${one} and ${other} were seen alive together` })
  }
}

function pairsOfOneJob(alive: readonly Run[]): [Run, Run][] {
  const seen = new Map<string, Run>()
  const pairs: [Run, Run][] = []
  for (const run of alive) {
    const other = seen.get(run.uuid)
    if (other !== undefined) pairs.push([other, run])
    seen.set(run.uuid, run)
  }
  return pairs
}

/** A look is no snapshot: the first may have ended before the second began. Whoever lives now lived then. */
function bothAlive(first: Run, second: Run): boolean {
  const lives = (run: Run) => run.processes.some(({ pid, startTicks }) => isAlive(pid, startTicks))
  return lives(first) && lives(second) && lives(first)
}
