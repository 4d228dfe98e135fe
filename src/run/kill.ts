/**
 * Ending a run: every process of it, not only the first; or all runs of a worker that died.
 *
 * A run's first process leads a session and process group of its own, and the environment of each of its processes
 * holds the run's mark. Children may leave the group (setsid), lose their parent (double fork), or both; the mark stays.
 * Where `/proc` exists, look.ts finds them.
 *
 *     TERM (and CONT: a stopped process must wake to see it) - up to 1 s - KILL until the looks find nothing
 *
 * A look at /proc is no snapshot: a process that forks and exits all the time may slip through. So groups are killed as
 * groups, which no fork escapes; and what appears during a look is shot at sight. Only a look during whose last listing
 * nothing was forked is believed at once.
 * What no look can find: a process that dropped the mark, left the session, the directory and the streams, and lost its
 * parent before we first looked. That takes intent. Where a run has a control group (cgroup.ts) it is found there, and
 * the group is killed as a whole with each KILL.
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
/** Looks after a run that ended by itself, while they are unclear. */
const MOST_SWEEP_LOOKS = 2

/** Ends a run that is still going on: TERM first, KILL after a second. */
export function killTree(
  run: RunIdentity,
  options: { useProc?: boolean; termToKillMs?: number } = {},
): Promise<KillReceipt> {
  return (options.useProc ?? hasProc)
    ? endByProc(run, options.termToKillMs ?? TERM_TO_KILL_MS, makeKnown(run))
    : endByTree(run, options.termToKillMs ?? TERM_TO_KILL_MS)
}

/**
 * Ends what a run left behind after its first process ended by itself. They had their time: KILL at once.
 * @returns undefined when nothing was left
 */
export async function sweepLeftovers(run: RunIdentity, useProc: boolean = hasProc): Promise<KillReceipt | undefined> {
  if (!useProc) return isGroupAlive(run.pid) ? endByTree(run, 0) : undefined
  const known = makeKnown(run)
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
  const signals: SentSignal[] = termToKillMs > 0 ? await terminate(quarry, termToKillMs, known) : []
  const began = signals.length > 0 ? called : performance.now()
  const since = () => Math.round(performance.now() - began)
  const noteKill = (processes: number) => {
    if (signals.at(-1)?.signal !== 'SIGKILL') signals.push({ signal: 'SIGKILL', at_ms: since(), processes })
  }
  const killing = performance.now()
  const shootAtSight = ({ pid }: ProcessStat) => send(pid, 'SIGKILL')
  let look = await lookFor(quarry, known, shootAtSight)
  for (let unclear = 0, pauseMs = POLL_MS / 4; ; look = await lookFor(quarry, known, shootAtSight)) {
    if (isAnyLeft(look)) {
      noteKill(look.found.length)
      await killFound(look, quarry, known)
      unclear = 0
      if (performance.now() - killing > GIVE_UP_MS) break
      await sleep(pauseMs)
      pauseMs = Math.min(pauseMs * 1.5, LONGEST_KILL_PAUSE_MS)
    } else {
      if (look.isClear || ++unclear >= ENOUGH_UNCLEAR_LOOKS) break
      if (quarry.pid !== undefined) killGroup(quarry.pid, known)
      await sleep(1)
    }
  }
  return { signals, duration_ms: since(), survivors: survivorsOf(look, quarry), method: 'proc' }
}

/**
 * TERM to all, and waits until they are gone or their time is over. First a look: who loses its parent by the signal is
 * known by then. On a busy machine looks take long; so the group of the first process has its signals by a clock.
 * @returns the signals, with times from the first one on
 */
async function terminate(quarry: Quarry, termToKillMs: number, known: Known): Promise<SentSignal[]> {
  const { pid } = quarry
  const signalFirst = (signal: NodeJS.Signals) => pid !== undefined && signalGroup(pid, signal, known)
  let timer = setTimeout(() => signalFirst('SIGTERM'), LONG_LOOK_MS)
  try {
    let look = await lookFor(quarry, known)
    clearTimeout(timer)
    // The first look may take long: who got the signal has its whole time.
    const began = performance.now()
    const signals: SentSignal[] = [{ signal: 'SIGTERM', at_ms: 0, processes: look.found.length }]
    timer = setTimeout(() => {
      signalFirst('SIGKILL')
      signals.push({ signal: 'SIGKILL', at_ms: Math.round(performance.now() - began), processes: look.found.length })
    }, termToKillMs)
    await shootAll(look.found, 'SIGTERM')
    if (look.isBlind && pid !== undefined) send(-pid, 'SIGTERM')
    await shootAll(look.found, 'SIGCONT')
    while (isAnyLeft(look) && performance.now() - began < termToKillMs) {
      await sleep(Math.min(POLL_MS, termToKillMs))
      look = await lookFor(quarry, known)
    }
    return signals
  } finally {
    clearTimeout(timer)
  }
}

function isAnyLeft(look: Look): boolean {
  return look.found.length > 0 || look.isBlind
}

function survivorsOf(look: Look, { pid: first }: Quarry): number[] {
  if (look.isBlind && look.found.length === 0) return first !== undefined && isGroupAlive(first) ? [first] : []
  return look.found.map(({ pid }) => pid)
}

async function killFound(look: Look, quarry: Quarry, known: Known): Promise<void> {
  // A group within a session of the quarry is the quarry's, also when its leader is gone.
  killGroups(quarry)
  const groups = new Map(look.found.map((stat) => [stat.group, known.has(stat.session)]))
  if (quarry.pid !== undefined) groups.set(quarry.pid, false)
  for (const [group, isInSession] of groups) killGroup(group, known, isInSession)
  await shootAll(look.found, 'SIGKILL')
}

/** A group whose leader was the quarry's holds its processes only: none but theirs can join it. */
function killGroup(group: number, known: Known, isInSession = false): void {
  signalGroup(group, 'SIGKILL', known, isInSession)
}

function signalGroup(group: number, signal: NodeJS.Signals, known: Known, isInSession = false): void {
  if (!known.has(group) && !isInSession) return
  const ticks = known.get(group)
  const leader = readProcess(group)
  const isRecycled = ticks !== undefined && leader !== undefined && leader.startTicks !== ticks
  const isForeign = !known.has(group) && leader !== undefined && !known.has(leader.session)
  if (!isRecycled && !isForeign && group !== readProcess(process.pid)?.group) send(-group, signal)
}

async function shootAll(found: readonly ProcessStat[], signal: NodeJS.Signals): Promise<void> {
  for (const [i, stat] of found.entries()) {
    shoot(stat, signal)
    if (i % SHOTS_PER_TURN === SHOTS_PER_TURN - 1) await nextTurn()
  }
}

/** Looks rest: who was found may be gone meanwhile, and its number given to a stranger. */
function shoot(stat: ProcessStat, signal: NodeJS.Signals): void {
  const now = readProcess(stat.pid)
  if (now === undefined || now.startTicks === stat.startTicks) send(stat.pid, signal)
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

/** Without any, execa 9.6 leaves the child's `error` unheard, which would end the worker. */
function hasSpareDescriptors(): boolean {
  const spare: number[] = []
  try {
    while (spare.length < 8) spare.push(openSync('/dev/null', 'r'))
    return true
  } catch {
    return false
  } finally {
    for (const fd of spare) closeSync(fd)
  }
}

/**
 * In a process of its own: where `ps` is missing or cannot be started, tree-kill 1.2.2 raises an exception that nobody
 * can catch, which would end the worker.
 */
async function signalTree(pid: number, signal: NodeJS.Signals): Promise<void> {
  if (!hasSpareDescriptors()) return send(-pid, signal)
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
  try {
    process.kill(-pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

/** @param pid negative: a group. Never 0 or -1, which mean our own group and everybody, nor number 1. */
function send(pid: number, signal: NodeJS.Signals): void {
  if (!Number.isInteger(pid) || Math.abs(pid) <= 1) return
  try {
    process.kill(pid, signal)
  } catch {
    // gone since we looked
  }
}
