/**
 * Ending a run: every process of it, not only the first.
 *
 * A run's first process leads a session and process group of its own, and the environment of each of its processes
 * holds the run's mark. Children may leave the group (setsid), lose their parent (double fork), or both; the mark stays.
 * Where `/proc` exists, a process belongs to the run when it carries the mark, is in the run's session, works in the
 * run's scratch directory, writes to the run's streams, or descends from one that does; and once seen, it is remembered.
 * Processes that are older than the run are never looked at, so a recycled number cannot be mistaken for it.
 *
 *     TERM (and CONT: a stopped process must wake to see it) - up to 1 s - KILL until the looks find nothing
 *
 * A look at /proc is no snapshot: a process that forks and exits all the time may slip through. So groups are killed as
 * groups, which no fork escapes; each look ends with listings of what is new since, as long as new processes appear;
 * and those are shot at sight. Only a look during whose last listing nothing was forked is believed at once.
 * What no look can find: a process that dropped the mark, left the session, the directory and the streams, and lost its
 * parent before we first looked. That takes intent; only a control group would hold it.
 *
 * Elsewhere only descendants (tree-kill, by way of `ps`) and the process group are found; the receipt says `tree`.
 */

import { closeSync, existsSync, openSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { execa } from 'execa'
import type { KillReceipt } from '../job/outcome.ts'

/** Name of the environment variable that marks the processes of a run. */
export const MARK_VARIABLE = 'QWORKER_RUN'

/** How a run's processes are recognised. */
export interface RunIdentity {
  /** of the first process; it leads the session and group */
  readonly pid: number
  /** value of MARK_VARIABLE, different for every run */
  readonly mark: string
  /** absolute path below which only this run works */
  readonly workdir: string
  /** start of the first process in clock ticks since boot; undefined where there is no /proc */
  readonly startTicks: number | undefined
}

/** Time between SIGTERM and SIGKILL. */
export const TERM_TO_KILL_MS = 1000
const GIVE_UP_MS = 5000
const POLL_MS = 20
const LONGEST_KILL_PAUSE_MS = 100
/** Empty looks in a row that are believed although something was forked during each of them. */
const ENOUGH_UNCLEAR_LOOKS = 5
/** Looks after a run that ended by itself, while they are unclear. */
const MOST_SWEEP_LOOKS = 2
/** Listings of new processes in one look. */
const MOST_LISTINGS = 10

export const hasProc: boolean = existsSync('/proc/self/stat') && existsSync('/proc/self/environ')

interface ProcessStat {
  readonly pid: number
  readonly parent: number
  readonly group: number
  readonly session: number
  readonly state: string
  readonly startTicks: number
}

/** What was seen of a run. */
interface Look {
  readonly found: readonly ProcessStat[]
  /** nothing can have slipped through */
  readonly isClear: boolean
  /** something could not be read for want of descriptors or memory: what was found may be less than what is there */
  readonly isBlind: boolean
}

/** Processes known to be the run's, and their starts. Who was seen once stays known, even when its traces are gone. */
type Known = Map<number, number | undefined>

/** Start of a process in clock ticks since boot, or undefined when it is gone or there is no /proc. */
export function startTicksOf(pid: number): number | undefined {
  return readStat(pid, { isBlind: false, isUnsure: false })?.startTicks
}

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
    const look = lookForRun(run, known)
    if (isAnyLeft(look)) return endByProc(run, 0, known)
    if (look.isClear) return undefined
  }
  return undefined
}

/** Processes of the run that are alive (a zombie is not), from `/proc`. */
export function findProcesses(run: RunIdentity): number[] {
  return lookForRun(run, makeKnown(run)).found.map(({ pid }) => pid)
}

function makeKnown(run: RunIdentity): Known {
  return new Map([[run.pid, run.startTicks]])
}

/** @param onNew called at once with each process that appeared during the look */
function lookForRun(run: RunIdentity, known: Known, onNew?: (pid: number) => void): Look {
  const sight: Sight = { isBlind: false, isUnsure: false }
  const seen = new Map<number, ProcessStat | undefined>()
  const all = listNew(seen, sight)
  // A known number may be another's by now: then neither session nor group of that number is ours.
  for (const [pid, ticks] of known) {
    const now = seen.get(pid)
    if (ticks !== undefined && now !== undefined && now.startTicks !== ticks) known.delete(pid)
  }
  const own = new Map<number, ProcessStat>()
  const take = (stat: ProcessStat) => {
    own.set(stat.pid, stat)
    known.set(stat.pid, stat.startTicks)
  }
  const candidates = all.filter((stat) => isCandidate(stat, run))
  for (const stat of candidates) if (isOwn(stat, run, known, sight)) take(stat)
  for (let size = -1; size !== own.size; ) {
    size = own.size
    for (const stat of candidates) if (!own.has(stat.pid) && isRelated(stat, known)) take(stat)
  }
  let isClear = false
  for (let listings = 0; listings < MOST_LISTINGS && !isClear; listings++) {
    const before = newestPid(sight)
    for (const stat of listNew(seen, sight)) {
      if (!isCandidate(stat, run) || !isOwn(stat, run, known, sight)) continue
      onNew?.(stat.pid)
      take(stat)
    }
    isClear = before !== undefined && newestPid(sight) === before
  }
  return { found: [...own.values()], isClear: isClear && !sight.isUnsure && !sight.isBlind, isBlind: sight.isBlind }
}

interface Sight {
  isBlind: boolean
  /** a process had no environment: it drops it, or it is within exec(2) and will have one in a moment */
  isUnsure: boolean
}

function listNew(seen: Map<number, ProcessStat | undefined>, sight: Sight): ProcessStat[] {
  const found: ProcessStat[] = []
  for (const name of attempt(sight, () => readdirSync('/proc')) ?? []) {
    const pid = Number(name)
    if (!Number.isInteger(pid) || seen.has(pid)) continue
    const stat = readStat(pid, sight)
    seen.set(pid, stat)
    if (stat !== undefined) found.push(stat)
  }
  return found
}

/** The last number that the system gave to a process: while it stays, nothing was forked. */
function newestPid(sight: Sight): string | undefined {
  return attempt(sight, () => readFileSync('/proc/loadavg', 'utf8'))
    ?.trim()
    .split(' ')[4]
}

function isCandidate(stat: ProcessStat, run: RunIdentity): boolean {
  if (stat.state === 'Z' || stat.state === 'X' || stat.pid === process.pid) return false
  return run.startTicks === undefined || stat.startTicks >= run.startTicks
}

function isOwn(stat: ProcessStat, run: RunIdentity, known: Known, sight: Sight): boolean {
  return known.has(stat.pid) || isRelated(stat, known) || leavesTrace(stat, run, sight)
}

function isRelated(stat: ProcessStat, known: Known): boolean {
  return known.has(stat.session) || known.has(stat.parent)
}

function leavesTrace({ pid, parent }: ProcessStat, run: RunIdentity, sight: Sight): boolean {
  const variable = `${MARK_VARIABLE}=${run.mark}`
  const environment = attempt(sight, () => readFileSync(`/proc/${pid}/environ`, 'utf8'))
  if (environment?.includes(variable) && environment.split('\0').includes(variable)) return true
  const isOurs = ['cwd', 'fd/1', 'fd/2'].some((link) =>
    attempt(sight, () => readlinkSync(`/proc/${pid}/${link}`))?.startsWith(`${run.workdir}/`),
  )
  // Threads of the kernel, children of number 2, never have an environment.
  if (!isOurs && environment === '' && parent !== 2) sight.isUnsure = true
  return isOurs
}

/** Reads something of /proc, which may be gone, another user's, or (EMFILE, ENFILE, ENOMEM) beyond our means just now. */
function attempt<T>(sight: Sight, read: () => T): T | undefined {
  try {
    return read()
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code
    if (code !== 'ENOENT' && code !== 'ESRCH' && code !== 'EACCES' && code !== 'EPERM') sight.isBlind = true
    return undefined
  }
}

function readStat(pid: number, sight: Sight): ProcessStat | undefined {
  const text = attempt(sight, () => readFileSync(`/proc/${pid}/stat`, 'utf8'))
  if (text === undefined) return undefined
  // The second field is the program's name in brackets, and may hold blanks and brackets itself: proc_pid_stat(5).
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
  return {
    pid,
    state: fields[0] ?? 'X',
    parent: Number(fields[1]),
    group: Number(fields[2]),
    session: Number(fields[3]),
    startTicks: Number(fields[19]),
  }
}

type SentSignal = KillReceipt['signals'][number]

async function endByProc(run: RunIdentity, termToKillMs: number, known: Known): Promise<KillReceipt> {
  let began = performance.now()
  const since = () => Math.round(performance.now() - began)
  const signals: SentSignal[] = []
  if (termToKillMs > 0) {
    const { found, isBlind } = lookForRun(run, known)
    // The first look may take long on a busy machine: who got the signal has its whole time.
    began = performance.now()
    signals.push({ signal: 'SIGTERM', at_ms: 0, processes: found.length })
    for (const { pid } of found) send(pid, 'SIGTERM')
    if (isBlind) send(-run.pid, 'SIGTERM')
    for (const { pid } of found) send(pid, 'SIGCONT')
    while (since() < termToKillMs && isAnyLeft(lookForRun(run, known))) await sleep(Math.min(POLL_MS, termToKillMs))
  }
  const noteKill = (processes: number) => {
    if (signals.at(-1)?.signal !== 'SIGKILL') signals.push({ signal: 'SIGKILL', at_ms: since(), processes })
  }
  const killing = performance.now()
  const shoot = (pid: number) => send(pid, 'SIGKILL')
  let look = lookForRun(run, known, shoot)
  for (let unclear = 0, pauseMs = POLL_MS / 4; ; look = lookForRun(run, known, shoot)) {
    if (isAnyLeft(look)) {
      noteKill(look.found.length)
      killFound(look, run, known)
      unclear = 0
      if (performance.now() - killing > GIVE_UP_MS) break
      await sleep(pauseMs)
      pauseMs = Math.min(pauseMs * 1.5, LONGEST_KILL_PAUSE_MS)
    } else {
      if (look.isClear || ++unclear >= ENOUGH_UNCLEAR_LOOKS) break
      killGroup(run.pid, known)
      await sleep(1)
    }
  }
  return { signals, duration_ms: since(), survivors: survivorsOf(look, run), method: 'proc' }
}

function isAnyLeft(look: Look): boolean {
  return look.found.length > 0 || look.isBlind
}

function survivorsOf(look: Look, run: RunIdentity): number[] {
  if (look.isBlind && look.found.length === 0) return isGroupAlive(run.pid) ? [run.pid] : []
  return look.found.map(({ pid }) => pid)
}

function killFound(look: Look, run: RunIdentity, known: Known): void {
  for (const group of new Set([run.pid, ...look.found.map((stat) => stat.group)])) killGroup(group, known)
  for (const { pid } of look.found) send(pid, 'SIGKILL')
}

/** A group whose leader was the run's holds processes of the run only: none but theirs can join it. */
function killGroup(group: number, known: Known): void {
  if (known.has(group)) send(-group, 'SIGKILL')
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

function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal)
  } catch {
    // gone since we looked
  }
}
