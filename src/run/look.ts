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
 *
 * A run that forks faster than we list must not hold up its own end: listings of what is new take a bounded time, and
 * a look is over at the time that its caller sets, seen all or not.
 */

import { existsSync, openSync, readdirSync, readFileSync, readlinkSync, readSync } from 'node:fs'
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
  /** that leads the session and group in place of the first process: it is not of the run, and is not looked for */
  readonly leader?: Leader | undefined
}

/** A process, with its start in clock ticks since boot. */
export interface Leader {
  readonly pid: number
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
  /** something could not be read for want of descriptors, memory or time: there may be more than what was found */
  readonly isBlind: boolean
}

export interface LookOptions {
  /** Called at once with each process of the quarry that appeared during the look. */
  readonly onNew?: (stat: ProcessStat) => void
  /** Called at once with each process of the quarry, after all that were there have been listed. */
  readonly onOld?: ((stat: ProcessStat) => void) | undefined
  /** performance.now() at which the look is over, whatever it has seen */
  readonly until?: number | undefined
  /** Processes that were found to have no trace of the quarry, with their starts: filled, and not asked again. */
  readonly strangers?: Map<number, number>
}

/**
 * Numbers of processes and sessions known to be the quarry's, and the starts of their processes. Who was seen once
 * stays known, even when its traces are gone.
 */
export type Known = Map<number, number | undefined>

/** Start of a session's leader that is gone: whoever bears its number later is another. */
const GONE = -1
/** Listings of new processes in one look, and the time after which none is begun; beyond that, only to shoot on. */
const MOST_LISTINGS = 10
const LISTINGS_MS = 200
/** The dead of a storm of forks fill every listing, while those that fork on have the newest numbers. */
const NEWEST_NUMBERS = 256
const MOST_ROUNDS = 100
const REST_AFTER_MS = 8

interface Sight {
  isBlind: boolean
  /** a process had no environment: it drops it, or it is within exec(2) and will have one in a moment */
  isUnsure: boolean
  /** both performance.now() */
  restedAt: number
  readonly until: number
}

function openSight(until = Number.POSITIVE_INFINITY): Sight {
  return { isBlind: false, isUnsure: false, restedAt: performance.now(), until }
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

/** @param seen processes of the quarry, with their starts, that were seen before: who is gone or recycled is left out */
export function makeKnown(quarry: Quarry, seen: ReadonlyMap<number, number> = new Map()): Known {
  const known: Known = new Map([...seen].filter(([pid, ticks]) => startTicksOf(pid) === ticks))
  if (quarry.leader !== undefined) known.set(quarry.leader.pid, quarry.leader.startTicks)
  return quarry.pid === undefined ? known : known.set(quarry.pid, quarry.startTicks)
}

export async function lookFor(quarry: Quarry, known: Known, options: LookOptions = {}): Promise<Look> {
  const { onNew, onOld, strangers } = options
  const sight = openSight(options.until)
  const seen = new Map<number, ProcessStat | undefined>()
  const all: ProcessStat[] = []
  // Who shoots begins soon: what is not listed by then is new in the listings that follow.
  const listUntil = onNew === undefined ? Number.POSITIVE_INFINITY : performance.now() + LISTINGS_MS
  const isWhole = await listNew(seen, sight, (stat) => all.push(stat) > 0 && performance.now() < listUntil)
  let members = listMembers(quarry, sight)
  forgetRecycled(known, seen)
  const spared = listAncestors(seen)
  if (quarry.leader !== undefined) spared.add(quarry.leader.pid)
  const own = new Map<number, ProcessStat>()
  const takeIfOwn = (stat: ProcessStat, isKin = known.has(stat.pid) || isRelated(stat, known)): boolean => {
    const isMember = members.has(stat.pid)
    if (!isKin && !isMember && strangers?.get(stat.pid) === stat.startTicks) return false
    const trace = isKin ? 'kin' : isMember ? 'group' : traceOf(stat, quarry, sight)
    if (trace === 'none') strangers?.set(stat.pid, stat.startTicks)
    if (trace === 'none' || trace === 'unsure') return false
    own.set(stat.pid, stat)
    known.set(stat.pid, stat.startTicks)
    if (trace === 'mark') learnSession(stat.session, quarry, known, seen, spared)
    return true
  }
  const candidates = all.filter((stat) => isCandidate(stat, quarry, spared))
  for (const stat of candidates) {
    if (takeIfOwn(stat)) onOld?.(stat)
    if (isTired(sight)) await rest(sight)
    if (isOver(sight)) break
  }
  for (let size = -1; size !== own.size; ) {
    size = own.size
    for (const stat of candidates) {
      if (!own.has(stat.pid) && isRelated(stat, known) && takeIfOwn(stat)) onOld?.(stat)
    }
  }
  const shootIfOwn = (stat: ProcessStat): boolean => {
    const isKin = [stat.pid, stat.session, stat.parent].some((number) => isStillKnown(number, stat, known))
    if (!isCandidate(stat, quarry, spared) || !takeIfOwn(stat, isKin)) return false
    onNew?.(stat)
    return true
  }
  let isClear = false
  const listing = performance.now()
  for (let listings = 0; listings < MOST_LISTINGS && !isClear && !isOver(sight); listings++) {
    if (listings > 0 && performance.now() - listing > LISTINGS_MS) break
    if (onNew !== undefined && (listings > 0 || !isWhole)) await meetNewest(seen, sight, shootIfOwn)
    const before = newestPid(sight)
    const others: ProcessStat[] = []
    // At once, not after the listing: who forks all the time is gone by then.
    const isAll = await listNew(seen, sight, (stat) => shootIfOwn(stat) || others.push(stat) > 0)
    if (others.length > 0) members = listMembers(quarry, sight)
    // A child may be listed before its parent.
    for (const stat of others) if (isRelated(stat, known) || members.has(stat.pid)) shootIfOwn(stat)
    isClear = isAll && before !== undefined && newestPid(sight) === before
  }
  // Parents first: a shell that a signal reaches after its child may take the child's end for its own.
  const found = [...own.values()].sort((a, b) => a.startTicks - b.startTicks || a.pid - b.pid)
  return { found, isClear: isClear && !sight.isUnsure && !sight.isBlind, isBlind: sight.isBlind }
}

/** More numbers than that are not asked one by one. */
const MOST_NUMBERS = 256
const MOST_GLANCES = 4

/**
 * Whether nothing can be left of a run whose first process ended, without a listing: whatever it forked has a higher
 * number than its first process, and is among those that were given out since. What is found to be a stranger is not
 * remembered: it is one to this run, and may be another's that goes on.
 * @param neighbours sessions of other runs: nobody can join one
 * @returns false when that cannot be told so: look for it
 */
export function isSurelyOver(
  quarry: Quarry & { readonly pid: number; readonly leader: Leader },
  neighbours: ReadonlySet<number>,
): boolean {
  const { pid: first, leader } = quarry
  const sight = openSight()
  // It outlives a launcher that was killed.
  if (existsSync(`/proc/${first}`) || listMembers(quarry, sight).size > 0) return false
  let asked = first
  for (let glances = 0; glances < MOST_GLANCES; glances++) {
    const newest = Number(newestPid(sight) ?? -1)
    // Nothing was forked since the run began, or while we looked at what was.
    if (newest === asked) return true
    if (newest < asked || newest - first > MOST_NUMBERS) return false
    for (let pid = asked + 1; pid <= newest; pid++) {
      const stat = existsSync(`/proc/${pid}`) ? readStat(pid, sight) : undefined
      if (sight.isBlind) return false
      if (stat === undefined || isZombie(stat) || pid === leader.pid) continue
      const isKin = stat.session === leader.pid || stat.parent === leader.pid || stat.parent === first
      if (!isKin && neighbours.has(stat.session)) continue
      if (isKin || traceOf(stat, quarry, sight) !== 'none') return false
    }
    asked = newest
  }
  return false
}

/** A look that ends before it has seen all is blind. */
function isOver(sight: Sight): boolean {
  if (performance.now() < sight.until) return false
  sight.isBlind = true
  return true
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

/** Who forks all the time has the numbers go round within seconds: a known one may have become another's since. */
function isStillKnown(number: number, stat: ProcessStat, known: Known): boolean {
  const ticks = known.get(number)
  if (ticks === undefined) return known.has(number)
  const now = number === stat.pid ? stat : readProcess(number)
  if (now === undefined || now.startTicks === ticks) return true
  known.delete(number)
  return false
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

/**
 * The newest first.
 * @param take says whether to go on
 * @returns whether all were listed
 */
async function listNew(
  seen: Map<number, ProcessStat | undefined>,
  sight: Sight,
  take: (stat: ProcessStat) => boolean,
): Promise<boolean> {
  const names = attempt(sight, () => readdirSync('/proc')) ?? []
  const pids = new Set(names.map(Number).filter(Number.isInteger))
  for (const pid of seen.keys()) if (!pids.has(pid)) seen.delete(pid)
  const newest = Number(newestPid(sight) ?? 0)
  const age = (pid: number) => (pid <= newest ? newest - pid : 2 ** 31 - pid)
  for (const pid of [...pids].sort((a, b) => age(a) - age(b))) {
    if (seen.has(pid)) continue
    const stat = readStat(pid, sight)
    seen.set(pid, stat)
    if (stat !== undefined && !take(stat)) return false
    if (isTired(sight)) await rest(sight)
    if (isOver(sight)) return false
  }
  return true
}

/** Without a listing, and again as long as numbers are given out. */
async function meetNewest(
  seen: Map<number, ProcessStat | undefined>,
  sight: Sight,
  take: (stat: ProcessStat) => void,
): Promise<void> {
  let last = 0
  for (let rounds = 0; rounds < MOST_ROUNDS && !isOver(sight); rounds++) {
    const newest = Number(newestPid(sight) ?? 0)
    if (newest === last) return
    last = newest
    for (let pid = newest; pid > Math.max(1, newest - NEWEST_NUMBERS); pid--) {
      // Threads answer to their numbers too, though no listing shows them; a signal to one of ours would reach us.
      if (seen.has(pid) || existsSync(`/proc/self/task/${pid}`)) continue
      const stat = readStat(pid, sight)
      seen.set(pid, stat)
      if (stat !== undefined) take(stat)
    }
    if (isTired(sight)) await rest(sight)
  }
}

/** Who is in the quarry's control groups. */
function listMembers(quarry: Quarry, sight: Sight): Set<number> {
  return new Set(listGroups(quarry).flatMap((path) => attempt(sight, () => readMembers(path)) ?? []))
}

/** The last number that the system gave to a process: while it stays, nothing was forked. */
function newestPid(sight: Sight): string | undefined {
  return attempt(sight, readLoadavg)?.trim().split(' ')[4]
}

/** Stays open: it is asked several times about each run, and to open it takes longer than to read it. */
let loadavg: number | undefined
const loadavgText = Buffer.alloc(256)

function readLoadavg(): string {
  loadavg ??= openSync('/proc/loadavg', 'r')
  return loadavgText.toString('latin1', 0, readSync(loadavg, loadavgText, 0, loadavgText.length, 0))
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

/** `unsure`: it may show one in a moment. */
type Trace = 'mark' | 'place' | 'none' | 'unsure'

function traceOf({ pid, parent }: ProcessStat, quarry: Quarry, sight: Sight): Trace {
  const environment = attempt(sight, () => readFileSync(`/proc/${pid}/environ`, 'utf8'))
  if (environment !== undefined && bearsMark(environment, quarry)) return 'mark'
  const isThere = ['cwd', 'fd/1', 'fd/2'].some((link) =>
    attempt(sight, () => readlinkSync(`/proc/${pid}/${link}`))?.startsWith(`${quarry.workdir}/`),
  )
  if (isThere) return 'place'
  // Threads of the kernel, children of number 2, never have an environment.
  if (environment === '' && parent !== 2) sight.isUnsure = true
  return environment === undefined || environment === '' ? 'unsure' : 'none'
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
