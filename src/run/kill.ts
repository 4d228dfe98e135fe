/**
 * Ending a run: every process of it, not only the first; or all runs of a worker that died.
 *
 * A run's first process, or the launcher that started it, leads a session and process group of its own, and the
 * environment of each of its processes holds the run's mark. Children may leave the group (setsid), lose their parent (double fork), or both; the mark stays.
 * Where `/proc` exists, look.ts finds them.
 *
 *     TERM (and CONT: a stopped process must wake to see it) - up to 1 s - KILL until the looks find nothing
 *
 * A look at /proc is no snapshot: a process that forks and exits all the time may slip through. So groups are killed as
 * groups, which no fork escapes; and what appears during a look is shot at sight, in later looks also what was there.
 * Only a look during whose last listing nothing was forked is believed at once.
 * Whatever the run does, its end keeps to the clock: from the first signal, which waits for a look no longer than
 * LONG_LOOK_MS, KILL follows after TERM_TO_KILL_MS, and after GIVE_UP_MS more who is left is named a survivor.
 * What no look can find: a process that shows no mark (it dropped it, or is not dumpable and its user is not root), left
 * the session, the directory and the streams, and lost its parent before the sampler or a look saw it. Where a run has a
 * control group (cgroup.ts) it is found there, and the group is killed as a whole with each KILL.
 *
 * Elsewhere only descendants (tree-kill, by way of `ps`) and the process group are found; the receipt says `tree`.
 */

import { closeSync, openSync } from 'node:fs'
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { KillReceipt } from '../job/outcome.ts'
import { isPopulated, killGroups, listGroups } from './cgroup.ts'
import {
  hasProc,
  isZombie,
  type Known,
  type Look,
  lookFor,
  makeKnown,
  type ProcessStat,
  type Quarry,
  readProcess,
} from './look.ts'

/** How a run's processes are recognised. */
export interface RunIdentity extends Quarry {
  readonly pid: number
}

/** How the processes of all runs of a worker are recognised. */
export interface RunsIdentity extends Quarry {
  readonly pid: undefined
  /** of the worker */
  readonly startTicks: number
}

/** Time between SIGTERM and SIGKILL. */
export const TERM_TO_KILL_MS = 1000
const GIVE_UP_MS = 5000
const POLL_MS = 20
const LONGEST_KILL_PAUSE_MS = 100
/** A first look that takes longer does not hold up the first signal. */
const LONG_LOOK_MS = 300
/** Empty looks in a row that are believed although something was forked during each of them. */
const ENOUGH_UNCLEAR_LOOKS = 5
/** The other slots go on between them. */
const SHOTS_PER_TURN = 100
const ownGroup = readProcess(process.pid)?.group
/** Looks after a run that ended by itself, while they are unclear. */
const MOST_SWEEP_LOOKS = 2

/**
 * Ends a run that is still going on: TERM first, KILL after a second.
 * @param options.seen processes of the run that were seen while it went on, with their starts
 */
export function killTree(
  run: RunIdentity,
  options: { useProc?: boolean; termToKillMs?: number; seen?: ReadonlyMap<number, number> } = {},
): Promise<KillReceipt> {
  return (options.useProc ?? hasProc)
    ? endByProc(run, options.termToKillMs ?? TERM_TO_KILL_MS, makeKnown(run, options.seen))
    : endByTree(run, options.termToKillMs ?? TERM_TO_KILL_MS)
}

/**
 * Ends what a run left behind after its first process ended by itself. They had their time: KILL at once.
 * @returns undefined when nothing was left
 */
export async function sweepLeftovers(
  run: RunIdentity,
  options: { useProc?: boolean; seen?: ReadonlyMap<number, number> } = {},
): Promise<KillReceipt | undefined> {
  if (!(options.useProc ?? hasProc)) return isGroupAlive(run.pid) ? endByTree(run, 0) : undefined
  const known = makeKnown(run, options.seen)
  for (let looks = 0; looks < MOST_SWEEP_LOOKS; looks++) {
    const look = await lookFor(run, known)
    if (isAnyLeft(look)) return endByProc(run, 0, known)
    if (look.isClear) return undefined
  }
  if (!listGroups(run).some(isPopulated)) return undefined
  const receipt = await endByProc(run, 0, known)
  return receipt.signals.length > 0 ? receipt : undefined
}

/**
 * Ends all runs of a worker that is dead. They have nobody to wait for their result: KILL at once.
 * @param pausesMs looks again after each: a process that was between fork and exec when its worker died had no trace yet
 */
export async function killRuns(runs: RunsIdentity, pausesMs: readonly number[]): Promise<KillReceipt> {
  const began = performance.now()
  const known = makeKnown(runs)
  let receipt = await endByProc(runs, 0, known)
  for (const pauseMs of pausesMs) {
    await sleep(pauseMs)
    const beganAgain = Math.round(performance.now() - began)
    const next = await endByProc(runs, 0, known)
    const later = next.signals.map((sent) => ({ ...sent, at_ms: sent.at_ms + beganAgain }))
    const duration_ms = later.length > 0 ? beganAgain + next.duration_ms : receipt.duration_ms
    receipt = { ...next, signals: [...receipt.signals, ...later], duration_ms }
  }
  return receipt
}

/** Processes of the run that are alive (a zombie is not), from `/proc`. */
export async function findProcesses(run: Quarry): Promise<number[]> {
  const { found } = await lookFor(run, makeKnown(run))
  return found.map(({ pid }) => pid)
}

type SentSignal = KillReceipt['signals'][number]

async function endByProc(quarry: Quarry, termToKillMs: number, known: Known): Promise<KillReceipt> {
  const called = performance.now()
  const strangers = new Map<number, number>()
  const terminated = termToKillMs > 0 ? await terminate(quarry, termToKillMs, known, strangers) : undefined
  const signals = terminated?.signals ?? []
  const killing = performance.now()
  const began = terminated?.began ?? killing
  const since = (from = began) => Math.round(performance.now() - from)
  const noteKill = (processes: number) => {
    if (signals.at(-1)?.signal !== 'SIGKILL') signals.push({ signal: 'SIGKILL', at_ms: since(), processes })
  }
  // Its session is known by now: the group is shot, and with it what it forks meanwhile.
  const onNew = ({ pid, group, session }: ProcessStat) => {
    send(pid, 'SIGKILL')
    killGroup(group, known, known.has(session))
  }
  const options = { onNew, until: killing + GIVE_UP_MS, strangers }
  const group = groupOf(quarry)
  const late = setTimeout(() => group !== undefined && killGroup(group, known), LONG_LOOK_MS)
  let look = await lookFor(quarry, known, options)
  let lastFound = look.found
  clearTimeout(late)
  // The first look knows all that lose their parents by KILL. Who outlives it forks all the time: all are shot at sight.
  for (let unclear = 0, pauseMs = POLL_MS / 4; ; look = await lookFor(quarry, known, { ...options, onOld: onNew })) {
    if (isAnyLeft(look)) {
      noteKill(look.found.length)
      await killFound(look, quarry, known)
      unclear = 0
      if (look.found.length > 0) lastFound = look.found
      if (performance.now() - killing > GIVE_UP_MS) break
      await sleep(pauseMs)
      pauseMs = Math.min(pauseMs * 1.5, LONGEST_KILL_PAUSE_MS)
    } else {
      if (look.isClear || ++unclear >= ENOUGH_UNCLEAR_LOOKS) break
      if (group !== undefined) killGroup(group, known)
      await sleep(1)
    }
  }
  return {
    signals,
    duration_ms: since(terminated ? called : killing),
    survivors: survivorsOf(isAnyLeft(look) ? { ...look, found: lastFound } : look, quarry),
    method: 'proc',
  }
}

/**
 * TERM to all, and waits until they are gone or their time is over. First a look: who loses its parent by the signal is
 * known by then. On a busy machine looks take long; so the group of the first process has its signals by a clock, which
 * starts with the first of them and ends every look.
 * @returns the signals, with times from the first one on, and performance.now() of that
 */
async function terminate(
  quarry: Quarry,
  termToKillMs: number,
  known: Known,
  strangers: Map<number, number>,
): Promise<{ signals: SentSignal[]; began: number }> {
  const pid = groupOf(quarry)
  const signals: SentSignal[] = []
  let began = 0
  let processes = 1
  let isGroupTold = false
  let clock: NodeJS.Timeout
  const begin = () => {
    began = performance.now()
    signals.push({ signal: 'SIGTERM', at_ms: 0, processes })
    clock = setTimeout(() => {
      if (pid === undefined || !killGroup(pid, known)) return
      signals.push({ signal: 'SIGKILL', at_ms: Math.round(performance.now() - began), processes })
    }, termToKillMs)
  }
  clock = setTimeout(() => {
    begin()
    isGroupTold = pid !== undefined && signalGroup(pid, 'SIGTERM', known)
    if (isGroupTold && pid !== undefined) send(-pid, 'SIGCONT')
  }, LONG_LOOK_MS)
  try {
    let look = await lookFor(quarry, known, { until: performance.now() + LONG_LOOK_MS + termToKillMs, strangers })
    processes = Math.max(look.found.length, isGroupTold ? 1 : 0)
    if (signals.length === 0) {
      clearTimeout(clock)
      begin()
    } else signals[0] = { signal: 'SIGTERM', at_ms: 0, processes }
    if (look.isBlind && !isGroupTold && pid !== undefined) send(-pid, 'SIGTERM')
    const untold = look.found.filter(({ group }) => !isGroupTold || group !== pid)
    await shootAll(untold, ['SIGTERM', 'SIGCONT'], began + termToKillMs)
    while (isAnyLeft(look) && performance.now() - began < termToKillMs) {
      await sleep(Math.min(POLL_MS, termToKillMs))
      look = await lookFor(quarry, known, { until: began + termToKillMs, strangers })
      processes = look.found.length
    }
    return { signals, began }
  } finally {
    clearTimeout(clock)
  }
}

function isAnyLeft(look: Look): boolean {
  return look.found.length > 0 || look.isBlind
}

function survivorsOf(look: Look, quarry: Quarry): number[] {
  const { pid: first, leader } = quarry
  const isThere = (pid: number) => (leader === undefined ? isGroupAlive(pid) : isAlive(pid))
  if (look.isBlind && look.found.length === 0) return first !== undefined && isThere(first) ? [first] : []
  const living = look.found.filter((stat) => {
    const now = readProcess(stat.pid)
    return now !== undefined && now.startTicks === stat.startTicks && !isZombie(now)
  })
  // Where all are gone that we shot last, we gave up on those that they forked.
  return (living.length > 0 ? living : look.found.slice(-1)).map(({ pid }) => pid)
}

async function killFound(look: Look, quarry: Quarry, known: Known): Promise<void> {
  // A group within a session of the quarry is the quarry's, also when its leader is gone.
  killGroups(quarry)
  const groups = new Map(look.found.map((stat) => [stat.group, known.has(stat.session)]))
  const own = groupOf(quarry)
  if (own !== undefined) groups.set(own, false)
  const shot = new Set(
    [...groups].filter(([group, isInSession]) => killGroup(group, known, isInSession)).map(([g]) => g),
  )
  const rest = look.found.filter(({ group }) => !shot.has(group))
  await shootAll(rest, ['SIGKILL'])
}

/** The process group of a run; undefined where all runs of a worker are meant. */
function groupOf({ pid, leader }: Quarry): number | undefined {
  return leader?.pid ?? pid
}

/** A group whose leader was the quarry's holds its processes only: none but theirs can join it. */
function killGroup(group: number, known: Known, isInSession = false): boolean {
  return signalGroup(group, 'SIGKILL', known, isInSession)
}

/** @returns whether it was sent */
function signalGroup(group: number, signal: NodeJS.Signals, known: Known, isInSession = false): boolean {
  if (!known.has(group) && !isInSession) return false
  const ticks = known.get(group)
  const leader = readProcess(group)
  const isRecycled = ticks !== undefined && leader !== undefined && leader.startTicks !== ticks
  const isForeign = !known.has(group) && leader !== undefined && !known.has(leader.session)
  if (isRecycled || isForeign || group === ownGroup) return false
  return send(-group, signal)
}

/** @param until performance.now() after which the others have to wait for the next signal */
async function shootAll(
  found: readonly ProcessStat[],
  signals: readonly NodeJS.Signals[],
  until = Number.POSITIVE_INFINITY,
): Promise<void> {
  for (const [i, stat] of found.entries()) {
    shoot(stat, signals)
    if (i % SHOTS_PER_TURN === SHOTS_PER_TURN - 1) await nextTurn()
    if (performance.now() > until) return
  }
}

/** Looks rest: who was found may be gone meanwhile, and its number given to a stranger. */
function shoot(stat: ProcessStat, signals: readonly NodeJS.Signals[]): void {
  const now = readProcess(stat.pid)
  if (now !== undefined && now.startTicks !== stat.startTicks) return
  for (const signal of signals) send(stat.pid, signal)
}

async function endByTree(run: RunIdentity, termToKillMs: number): Promise<KillReceipt> {
  const began = performance.now()
  const since = () => Math.round(performance.now() - began)
  const signals: SentSignal[] = []
  if (termToKillMs > 0) {
    signals.push({ signal: 'SIGTERM', at_ms: since(), processes: 1 })
    await signalTree(run.pid, 'SIGTERM')
    send(-run.pid, 'SIGCONT')
    while (since() < termToKillMs && isGroupAlive(run.pid)) await sleep(POLL_MS)
  }
  if (isGroupAlive(run.pid)) {
    signals.push({ signal: 'SIGKILL', at_ms: since(), processes: 1 })
    await signalTree(run.pid, 'SIGKILL')
    send(-run.pid, 'SIGKILL')
  }
  const killing = performance.now()
  while (isGroupAlive(run.pid) && performance.now() - killing < GIVE_UP_MS) await sleep(POLL_MS)
  return { signals, duration_ms: since(), survivors: isGroupAlive(run.pid) ? [run.pid] : [], method: 'tree' }
}

/** The system's code when fewer descriptors than wanted are left. */
export function findDescriptorShortage(wanted: number): string | undefined {
  const spare: number[] = []
  try {
    while (spare.length < wanted) spare.push(openSync('/dev/null', 'r'))
    return undefined
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error)
  } finally {
    for (const fd of spare) closeSync(fd)
  }
}

/**
 * In a process of its own: where `ps` is missing or cannot be started, tree-kill 1.2.2 raises an exception that nobody
 * can catch, which would end the worker.
 */
async function signalTree(pid: number, signal: NodeJS.Signals): Promise<void> {
  // Without any, execa 9.6 leaves the child's `error` unheard, which would end the worker.
  if (findDescriptorShortage(8) !== undefined) {
    send(-pid, signal)
    return
  }
  const treeKill = fileURLToPath(import.meta.resolve('tree-kill/cli.js'))
  // Loaded where it is needed: it takes longer than all else that a guard does before its first look.
  const { execa } = await import('execa')
  const { exitCode } = await execa(process.execPath, [treeKill, String(pid), signal], {
    stdio: 'ignore',
    reject: false,
    timeout: GIVE_UP_MS,
  })
  if (exitCode !== 0) send(-pid, signal)
}

function isGroupAlive(pid: number): boolean {
  return isAlive(-pid)
}

/** @param pid negative: a group */
function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

/**
 * @param pid negative: a group. Never 0 or -1, which mean our own group and everybody, nor number 1.
 * @returns whether it was sent: false where it is gone since we looked
 */
function send(pid: number, signal: NodeJS.Signals): boolean {
  if (!Number.isInteger(pid) || Math.abs(pid) <= 1) return false
  try {
    return process.kill(pid, signal)
  } catch {
    return false
  }
}
