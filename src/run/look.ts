/**
 * Looking for the processes of a run, or of all runs of a worker, in `/proc`.
 *
 * A process belongs to the quarry when it is in its control group (cgroup.ts), carries the mark in its environment, is in
 * a session of the quarry, works in its directory, writes to its streams, or descends from one that does; and once seen,
 * it is remembered. Where a whole
 * worker is looked for, no first process is known; but who carries a mark got it, and its session, from the run.
 * Never looked at are processes older than the quarry (so a recycled number cannot be mistaken for it), number 1, this
 * very process and those above it.
 *
 * A look is no snapshot: a process that forks and exits all the time may slip through. So each look ends with listings
 * of what is new since, as long as new processes appear. Only a look during whose last listing nothing was forked is
 * clear. On a machine with thousands of processes a look takes long: it rests every few milliseconds, so that the other
 * slots go on. What it found may be gone by its end, and the number be another's: `shoot` makes sure.
 */

import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { type GroupQuarry, listGroups, readMembers } from './cgroup.ts'

/** Name of the environment variable that marks the processes of a run. */
export const MARK_VARIABLE = 'QWORKER_RUN'

/** How processes are recognised: those of one run, or those of all runs of a worker. */
export interface Quarry extends GroupQuarry {
  /** of the run's first process, which leads its session and group; undefined when all runs of a worker are meant */
  readonly pid: number | undefined
  /** value of MARK_VARIABLE; without a `pid`, what the value begins with */
  readonly mark: string
  /** absolute real path below which only the quarry works */
  readonly workdir: string
  /** start of the first process, or of the worker, in clock ticks since boot; undefined where there is no /proc */
  readonly startTicks: number | undefined
}

export const hasProc: boolean = existsSync('/proc/self/stat') && existsSync('/proc/self/environ')

export interface ProcessStat {
  readonly pid: number
  readonly parent: number
  readonly group: number
  readonly session: number
  readonly state: string
  readonly startTicks: number
}

/** What was seen of a quarry. */
export interface Look {
  readonly found: readonly ProcessStat[]
  /** nothing can have slipped through */
  readonly isClear: boolean
  /** something could not be read for want of descriptors or memory: what was found may be less than what is there */
  readonly isBlind: boolean
}

/**
 * Numbers of processes and sessions known to be the quarry's, and the starts of their processes. Who was seen once
 * stays known, even when its traces are gone.
 */
export type Known = Map<number, number | undefined>

/** Start of a session's leader that is gone: whoever bears its number later is another. */
const GONE = -1
/** Listings of new processes in one look. */
const MOST_LISTINGS = 10
const REST_AFTER_MS = 8

interface Sight {
  isBlind: boolean
  /** a process had no environment: it drops it, or it is within exec(2) and will have one in a moment */
  isUnsure: boolean
  /** performance.now() */
  restedAt: number
}

function openSight(): Sight {
  return { isBlind: false, isUnsure: false, restedAt: performance.now() }
}

/** A process as /proc shows it, or undefined when it is gone or there is no /proc. A zombie is shown. */
export function readProcess(pid: number): ProcessStat | undefined {
  return readStat(pid, openSight())
}

/** Start of a process in clock ticks since boot, or undefined when it is gone or there is no /proc. */
export function startTicksOf(pid: number): number | undefined {
  return readProcess(pid)?.startTicks
}

/** Dead, though not yet buried. */
export function isZombie({ state }: ProcessStat): boolean {
  return state === 'Z' || state === 'X'
}

export function makeKnown(quarry: Quarry): Known {
  return quarry.pid === undefined ? new Map() : new Map([[quarry.pid, quarry.startTicks]])
}

/** @param onNew called at once with each process that appeared during the look */
export async function lookFor(quarry: Quarry, known: Known, onNew?: (stat: ProcessStat) => void): Promise<Look> {
  const sight = openSight()
  const seen = new Map<number, ProcessStat | undefined>()
  const all = await listNew(seen, sight)
  let members = listMembers(quarry, sight)
  forgetRecycled(known, seen)
  const spared = listAncestors(seen)
  const own = new Map<number, ProcessStat>()
  const takeIfOwn = (stat: ProcessStat): boolean => {
    const trace =
      known.has(stat.pid) || isRelated(stat, known)
        ? 'kin'
        : members.has(stat.pid)
          ? 'group'
          : traceOf(stat, quarry, sight)
    if (trace === undefined) return false
    own.set(stat.pid, stat)
    known.set(stat.pid, stat.startTicks)
    if (trace === 'mark') learnSession(stat.session, quarry, known, seen, spared)
    return true
  }
  const candidates = all.filter((stat) => isCandidate(stat, quarry, spared))
  for (const stat of candidates) {
    takeIfOwn(stat)
    if (isTired(sight)) await rest(sight)
  }
  for (let size = -1; size !== own.size; ) {
    size = own.size
    for (const stat of candidates) if (!own.has(stat.pid) && isRelated(stat, known)) takeIfOwn(stat)
  }
  let isClear = false
  for (let listings = 0; listings < MOST_LISTINGS && !isClear; listings++) {
    const before = newestPid(sight)
    const fresh = await listNew(seen, sight)
    if (fresh.length > 0) members = listMembers(quarry, sight)
    for (const stat of fresh) {
      if (isCandidate(stat, quarry, spared) && takeIfOwn(stat)) onNew?.(stat)
      if (isTired(sight)) await rest(sight)
    }
    isClear = before !== undefined && newestPid(sight) === before
  }
  return { found: [...own.values()], isClear: isClear && !sight.isUnsure && !sight.isBlind, isBlind: sight.isBlind }
}

function isTired(sight: Sight): boolean {
  return performance.now() - sight.restedAt > REST_AFTER_MS
}

async function rest(sight: Sight): Promise<void> {
  await nextTurn()
  sight.restedAt = performance.now()
}

/** A known number may be another's by now: then neither session nor group of that number is ours. */
function forgetRecycled(known: Known, seen: ReadonlyMap<number, ProcessStat | undefined>): void {
  for (const [pid, ticks] of known) {
    const now = seen.get(pid)
    if (ticks !== undefined && now !== undefined && now.startTicks !== ticks) known.delete(pid)
  }
}

/** Who looks, and all above it. It may itself run under a mark: an algorithm may start a worker. */
function listAncestors(seen: ReadonlyMap<number, ProcessStat | undefined>): Set<number> {
  const spared = new Set([0, 1, process.pid])
  for (let pid: number | undefined = process.ppid; pid !== undefined && !spared.has(pid); ) {
    spared.add(pid)
    pid = seen.get(pid)?.parent
  }
  return spared
}

async function listNew(seen: Map<number, ProcessStat | undefined>, sight: Sight): Promise<ProcessStat[]> {
  const found: ProcessStat[] = []
  for (const name of attempt(sight, () => readdirSync('/proc')) ?? []) {
    const pid = Number(name)
    if (!Number.isInteger(pid) || seen.has(pid)) continue
    const stat = readStat(pid, sight)
    seen.set(pid, stat)
    if (stat !== undefined) found.push(stat)
    if (isTired(sight)) await rest(sight)
  }
  return found
}

/** Who is in the quarry's control groups. */
function listMembers(quarry: Quarry, sight: Sight): Set<number> {
  return new Set(listGroups(quarry).flatMap((path) => attempt(sight, () => readMembers(path)) ?? []))
}

/** The last number that the system gave to a process: while it stays, nothing was forked. */
function newestPid(sight: Sight): string | undefined {
  return attempt(sight, () => readFileSync('/proc/loadavg', 'utf8'))
    ?.trim()
    .split(' ')[4]
}

function isCandidate(stat: ProcessStat, quarry: Quarry, spared: ReadonlySet<number>): boolean {
  return !isZombie(stat) && !spared.has(stat.pid) && isYoung(stat, quarry)
}

function isYoung(stat: ProcessStat, quarry: Quarry): boolean {
  return quarry.startTicks === undefined || stat.startTicks >= quarry.startTicks
}

function isRelated(stat: ProcessStat, known: Known): boolean {
  return known.has(stat.session) || known.has(stat.parent)
}

/** The session of a marked process is the run's, also when its leader is gone. */
function learnSession(
  session: number,
  quarry: Quarry,
  known: Known,
  seen: ReadonlyMap<number, ProcessStat | undefined>,
  spared: ReadonlySet<number>,
): void {
  if (known.has(session) || spared.has(session) || seen.get(process.pid)?.session === session) return
  const leader = seen.get(session)
  if (leader === undefined) known.set(session, GONE)
  else if (isYoung(leader, quarry)) known.set(session, leader.startTicks)
}

function traceOf({ pid, parent }: ProcessStat, quarry: Quarry, sight: Sight): 'mark' | 'place' | undefined {
  const environment = attempt(sight, () => readFileSync(`/proc/${pid}/environ`, 'utf8'))
  if (environment !== undefined && bearsMark(environment, quarry)) return 'mark'
  const isThere = ['cwd', 'fd/1', 'fd/2'].some((link) =>
    attempt(sight, () => readlinkSync(`/proc/${pid}/${link}`))?.startsWith(`${quarry.workdir}/`),
  )
  // Threads of the kernel, children of number 2, never have an environment.
  if (!isThere && environment === '' && parent !== 2) sight.isUnsure = true
  return isThere ? 'place' : undefined
}

function bearsMark(environment: string, quarry: Quarry): boolean {
  const wanted = `${MARK_VARIABLE}=${quarry.mark}`
  if (!environment.includes(wanted)) return false
  const variables = environment.split('\0')
  return quarry.pid === undefined ? variables.some((text) => text.startsWith(wanted)) : variables.includes(wanted)
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
