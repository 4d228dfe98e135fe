/**
 * What a run used, sampled from `/proc`: soon after its start, then more and more rarely, at last each second. What
 * happens between the last sample and the end is not seen.
 *
 * Processor time of a process that is gone stands in the sums of the parent that waited for it. Where nobody waited
 * (its parent died first, or ignores its children), what we last saw of it is carried over: nothing is counted twice,
 * and little is lost.
 */

import { closeSync, openSync, readdirSync, readFileSync, readSync } from 'node:fs'

const PAUSES_MS = [20, 50, 100, 200, 400, 800, 1000]
/** Sampling takes at most a fiftieth of the time, however many processes there are. */
const LEAST_REST = 50
/** The loop is held up while a sample is taken: of larger trees only so many processes are counted, and threads asked. */
const MOST_PROCESSES = 500
const MOST_THREADS = 500

/** One process in one sample; times in clock ticks. */
interface Seen {
  readonly parent: number
  readonly startTicks: number
  readonly ownTicks: number
  /** of children that ended and were waited for */
  readonly childTicks: number
  readonly residentPages: number
}

export interface Sampler {
  /** Takes a sample now, such as right before the run is ended. */
  sample(): void
  /** Ends the sampling; what was seen. */
  stop(): Sampled
}

export interface Sampled {
  readonly cpuSeconds: number | null
  readonly peakMemoryBytes: number | null
  /** of the first process alone, without its children */
  readonly firstCpuSeconds: number | null
  /** who was there at the last look, with their starts; also who lost its parent since it was first seen */
  readonly processes: ReadonlyMap<number, number>
}

/**
 * @param pid the first process of the run
 * @param isOld it was there before: its own highest memory may be of another time
 */
export function startSampling(pid: number, isOld = false): Sampler {
  const units = readUnits()
  let before: ReadonlyMap<number, Seen> = new Map()
  let lostTicks = 0
  let ticks = 0
  let firstTicks = 0
  let peakPages = 0
  let samples = 0
  let timer: NodeJS.Timeout | undefined
  const sample = () => {
    if (units === undefined) return
    const now = lookAtTree(pid, before)
    if (now.size === 0) return
    lostTicks += lostBetween(before, now)
    let living = 0
    let pages = 0
    for (const seen of now.values()) {
      living += seen.ownTicks + seen.childTicks
      pages += seen.residentPages
    }
    ticks = Math.max(ticks, lostTicks + living)
    firstTicks = Math.max(firstTicks, now.get(pid)?.ownTicks ?? 0)
    peakPages = Math.max(peakPages, pages, isOld ? 0 : readPeakBytes(pid) / units.pageBytes)
    before = now
    samples++
  }
  const arm = (turn: number, tookMs: number) => {
    const look = () => {
      const began = performance.now()
      sample()
      arm(turn + 1, performance.now() - began)
    }
    timer = setTimeout(look, Math.max(PAUSES_MS[Math.min(turn, PAUSES_MS.length - 1)] ?? 0, LEAST_REST * tookMs))
  }
  if (units !== undefined) arm(0, 0)
  const stop = () => {
    clearTimeout(timer)
    const processes = new Map([...before].map(([seen, { startTicks }]) => [seen, startTicks]))
    if (units === undefined || samples === 0)
      return { cpuSeconds: null, peakMemoryBytes: null, firstCpuSeconds: null, processes }
    const { ticksPerSecond, pageBytes } = units
    return {
      cpuSeconds: ticks / ticksPerSecond,
      peakMemoryBytes: Math.round(peakPages * pageBytes),
      firstCpuSeconds: firstTicks / ticksPerSecond,
      processes,
    }
  }
  return { sample, stop }
}

/** One process at one moment. */
export interface Reading {
  /** its own, and that of children that it waited for */
  readonly cpuSeconds: number
  readonly residentBytes: number
}

/** Reads what one process uses, again and again, at a fifth of what it costs to open its file each time. */
export interface Meter {
  /** undefined when the process is gone */
  read(): Reading | undefined
  close(): void
}

/** @returns undefined where there is no /proc, or no descriptor */
export function openMeter(pid: number): Meter | undefined {
  const units = readUnits()
  if (units === undefined) return undefined
  let fd: number
  try {
    fd = openSync(`/proc/${pid}/stat`, 'r')
  } catch {
    return undefined
  }
  const buffer = Buffer.alloc(1024)
  const read = () => {
    try {
      const text = buffer.toString('latin1', 0, readSync(fd, buffer, 0, buffer.length, 0))
      const seen = parseStat(text)
      return (
        seen && {
          cpuSeconds: (seen.ownTicks + seen.childTicks) / units.ticksPerSecond,
          residentBytes: seen.residentPages * units.pageBytes,
        }
      )
    } catch {
      return undefined
    }
  }
  return { read, close: () => closeSync(fd) }
}

interface Units {
  readonly pageBytes: number
  readonly ticksPerSecond: number
}

let knownUnits: Units | undefined

/** From the vector that the kernel gives each program: getauxval(3). Undefined where there is no /proc. */
function readUnits(): Units | undefined {
  if (knownUnits !== undefined) return knownUnits
  const AT_PAGESZ = 6
  const AT_CLKTCK = 17
  try {
    const vector = new BigUint64Array(new Uint8Array(readFileSync('/proc/self/auxv')).buffer)
    const wordOf = (key: number) =>
      Number(vector[vector.findIndex((word, i) => i % 2 === 0 && word === BigInt(key)) + 1])
    const units = { pageBytes: wordOf(AT_PAGESZ), ticksPerSecond: wordOf(AT_CLKTCK) }
    // A program of 32 bits has shorter words.
    if (units.pageBytes >= 4096 && units.ticksPerSecond > 0) knownUnits = units
  } catch {}
  return knownUnits
}

/** The tree below the first process, and below those that were in it before and lost their parents since. */
function lookAtTree(pid: number, before: ReadonlyMap<number, Seen>): Map<number, Seen> {
  const now = new Map<number, Seen>()
  // Those we know come first: one that is left out for want of room would be taken for gone.
  for (const known of [pid, ...before.keys()]) {
    const seen = readProcess(known)
    // Its number may be another's by now.
    if (seen !== undefined && seen.startTicks === (before.get(known) ?? seen).startTicks) now.set(known, seen)
  }
  const waiting = [...now.keys()]
  for (let next = waiting.pop(); next !== undefined && now.size < MOST_PROCESSES; next = waiting.pop()) {
    for (const child of readChildren(next)) {
      if (now.has(child) || now.size >= MOST_PROCESSES) continue
      const seen = readProcess(child)
      if (seen === undefined) continue
      now.set(child, seen)
      waiting.push(child)
    }
  }
  return now
}

/** Ticks of those who vanished that went into the sums of no process that we still see. */
function lostBetween(before: ReadonlyMap<number, Seen>, now: ReadonlyMap<number, Seen>): number {
  const isGone = (pid: number) => now.get(pid)?.startTicks !== before.get(pid)?.startTicks
  let lost = 0
  const inherited = new Map<number, number>()
  for (const [pid, seen] of before) {
    if (!isGone(pid)) continue
    let heir = seen.parent
    for (let up = before.get(heir); up !== undefined && isGone(heir); up = before.get(heir)) heir = up.parent
    const last = seen.ownTicks + seen.childTicks
    if (before.has(heir)) inherited.set(heir, (inherited.get(heir) ?? 0) + last)
    else lost += last
  }
  for (const [heir, last] of inherited) {
    const gained = (now.get(heir)?.childTicks ?? 0) - (before.get(heir)?.childTicks ?? 0)
    lost += Math.max(0, last - gained)
  }
  return lost
}

function readProcess(pid: number): Seen | undefined {
  return parseStat(readText(`/proc/${pid}/stat`))
}

function parseStat(text: string): Seen | undefined {
  // The second field is the program's name in brackets, and may hold blanks and brackets itself: proc_pid_stat(5).
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
  if (fields.length < 22) return undefined
  const number = (i: number) => Number(fields[i])
  return {
    parent: number(1),
    ownTicks: number(11) + number(12),
    childTicks: number(13) + number(14),
    startTicks: number(19),
    residentPages: number(21),
  }
}

/** Empty where the kernel has no such file (CONFIG_PROC_CHILDREN): then the first process alone is seen. */
function readChildren(pid: number): number[] {
  let threads: string[] = []
  try {
    threads = readdirSync(`/proc/${pid}/task`).slice(0, MOST_THREADS)
  } catch {}
  return threads.flatMap((thread) =>
    readText(`/proc/${pid}/task/${thread}/children`).split(' ').filter(Boolean).map(Number),
  )
}

/** The highest that was ever resident of one process; 0 when it is gone. */
function readPeakBytes(pid: number): number {
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(readText(`/proc/${pid}/status`))?.[1] ?? 0) * 1024
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    return ''
  }
}
