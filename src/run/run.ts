/** A process in, an Outcome out. */

import { closeSync, fstatSync, ftruncateSync, readSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import type { KillReceipt, Outcome, Usage } from '../job/outcome.ts'
import { nestingDepth } from '../job/package.ts'
import type { SkippedFile } from '../job/result.ts'
import type { Algorithm } from './algorithm.ts'
import { type Group, type GroupNotes, type Groups, readNotes, removeGroups } from './cgroup.ts'
import { explainExit, startFirstProcess } from './first-process.ts'
import { killTree, type RunIdentity, sweepLeftovers } from './kill.ts'
import { type Exit, type Launcher, sessions } from './launcher.ts'
import { nameLimit } from './limits.ts'
import { isSurelyOver, startTicksOf } from './look.ts'
import { type Sampled, startSampling } from './usage.ts'
import {
  collectOutputs,
  directoryBytes,
  isBare,
  leaveEmptyStreams,
  type Output,
  readTailOf,
  reclaimStreams,
  SMALL_BYTES,
  STDERR_TAIL_BYTES,
  type Workdir,
} from './workdir.ts'

export interface RunRequest {
  readonly algorithm: Algorithm
  readonly workdir: Workdir
  /** of the worker: by it the runs of one that died are found */
  readonly workerId: string
  readonly uuid: string
  readonly type: string
  readonly attempt: number
  readonly maxAttempts: number
  readonly tube: string
  readonly priority: number
  readonly ttrSeconds: number
  /** seconds after which the run is ended: TTR + GRACE_TIME */
  readonly limitSeconds: number
  /** PATH and the like that every algorithm gets */
  readonly environment: Readonly<Record<string, string>>
  /** bytes for each of stdout and stderr */
  readonly maxOutputBytes: number
  /** bytes for the scratch directory */
  readonly maxScratchBytes: number
  /** where runs have control groups */
  readonly groups?: Groups | undefined
  /** starts the process where it can: the slot's own; without one Node does */
  readonly launcher?: Launcher | undefined
  /** Aborted with a `RunEnd` as its reason, ends the run before its time. */
  readonly signal: AbortSignal
  /** Called once when the first process is there, and when the run is about to be ended by us. They must not throw. */
  readonly onStarted?: (pid: number) => void
  readonly onEnding?: (pid: number, why: RunEnd['kind']) => void
}

/** Why we end a run. */
export type RunEnd = Extract<Outcome, { kind: 'timed_out' | 'interrupted' | 'lost' | 'output_exceeded' }>

export interface RunReport {
  readonly outcome: Outcome
  /** of the first process; null when it died by a signal or never was */
  readonly exitCode: number | null
  readonly signal: string | undefined
  readonly pid: number | undefined
  readonly started: Date
  readonly ended: Date
  readonly durationSeconds: number
  readonly kill: KillReceipt | undefined
  /** undefined when no process was started */
  readonly usage: Usage | undefined
  /** what is shown of stdout, and kept of stderr: their last bytes */
  readonly stdoutTail: string
  readonly stderrTail: string
  /** JSON text; only after a success */
  readonly resultJson: string | undefined
  readonly outputs: readonly Output[]
  readonly skipped: readonly SkippedFile[]
}

/** Larger results belong in a file: the document is checked as a whole, and the other slots wait meanwhile (tenths of a second). */
export const MAX_RESULT_BYTES = 4 * 2 ** 20
/** Deeper results crash the recursive parsers of those who read them. */
export const MAX_RESULT_DEPTH = 1000
const MAX_TEXT_RESULT_BYTES = 64 * 2 ** 10
/** Of stdout, for people; all of it is in stdout.log. */
export const SHOWN_STDOUT_BYTES = 4096
export const STREAM_CHECK_MS = 100
const SCRATCH_CHECK_MS = 1000

/**
 * Runs one attempt to its end: the process exited, or was ended at its limit, and nothing of it is left.
 * @throws only what the file system throws: a fault of the machine
 */
export async function runAlgorithm(request: RunRequest): Promise<RunReport> {
  const started = new Date()
  const clock = performance.now()
  const report = (partial: Partial<RunReport> & { outcome: Outcome }): RunReport => ({
    exitCode: null,
    signal: undefined,
    pid: undefined,
    kill: undefined,
    usage: undefined,
    resultJson: undefined,
    outputs: [],
    skipped: [],
    started,
    ended: new Date(),
    durationSeconds: Math.round(performance.now() - clock) / 1000,
    stdoutTail: '',
    stderrTail: '',
    ...partial,
  })
  const process_ = await startFirstProcess(request, started)
  if ('outcome' in process_) {
    leaveEmptyStreams(request.workdir)
    return report({ outcome: process_.outcome })
  }
  const { identity, exited, streams, group, file } = process_
  const sampler = startSampling(identity.pid)
  try {
    request.onStarted?.(identity.pid)
    const end = await waitForEnd(request, exited, streams)
    if (end !== undefined) sampler.sample()
    const sampled = sampler.stop()
    const { exitCode, signal, kill } = await conclude(request, identity, exited, end, sampled.processes)
    const notes = group && takeNotes(group, request)
    const usage = usageOf(sampled, notes, clock)
    const excess = streamExcess(streams, request.maxOutputBytes)
    await reclaimStreams(request.workdir, streams, request.maxOutputBytes)
    const base = { exitCode, signal, pid: identity.pid, kill, usage, ...readTails(streams) }
    if (end !== undefined) return report({ ...base, outcome: end })
    const ended = classify(request.algorithm, exitCode, signal)
    const unstarted = (group ?? identity.leader) && (await explainExit(request.algorithm, file, exitCode))
    if (unstarted !== undefined) {
      // All that is in them is what the shell said of it.
      for (const fd of streams) ftruncateSync(fd)
      return report({ outcome: unstarted })
    }
    const outcome = nameLimit(ended, request.algorithm.limits, usage, sampled.firstCpuSeconds, notes)
    if (outcome.kind !== 'success') return report({ ...base, outcome })
    // A short run may be over before the first look at its streams.
    if (excess !== undefined) return report({ ...base, outcome: { kind: 'output_exceeded', detail: excess } })
    return report({ ...base, ...(await harvest(request, streams[0])) })
  } finally {
    sampler.stop()
    for (const fd of streams) closeSync(fd)
    const busy = group === undefined ? [] : await removeGroups(identity)
    if (busy.length > 0) request.groups?.tell(`${busy[0]} cannot be removed`)
  }
}

function readTails([stdout, stderr]: readonly [number, number]): Pick<RunReport, 'stdoutTail' | 'stderrTail'> {
  return { stdoutTail: readTailOf(stdout, SHOWN_STDOUT_BYTES + 1), stderrTail: readTailOf(stderr, STDERR_TAIL_BYTES) }
}

function usageOf({ cpuSeconds, peakMemoryBytes }: Sampled, notes: GroupNotes | undefined, clock: number): Usage {
  const isCounted = notes?.cpuSeconds !== undefined
  return {
    wall_seconds: Math.round(performance.now() - clock) / 1000,
    cpu_seconds: notes?.cpuSeconds ?? cpuSeconds,
    peak_memory_bytes: notes?.peakMemoryBytes ?? peakMemoryBytes,
    method: !isCounted ? 'sampled' : notes.peakMemoryBytes === undefined ? 'cgroup_cpu' : 'cgroup',
  }
}

/** @returns undefined when the run did not come into its group */
export function takeNotes({ path }: Group, { groups, algorithm }: RunRequest): GroupNotes | undefined {
  const notes = readNotes(path)
  if (notes.wasEntered) return notes
  groups?.tell(`a run of ${algorithm.name} could not enter ${path}`)
  return undefined
}

/** Waits until the process exits, or there is a reason to end it. */
async function waitForEnd(
  request: RunRequest,
  exited: Promise<Exit>,
  streams: readonly number[],
): Promise<RunEnd | undefined> {
  let end: (why: RunEnd) => void = () => undefined
  const ended = new Promise<RunEnd>((resolve) => {
    end = resolve
  })
  const onAbort = () => end(request.signal.reason as RunEnd)
  if (request.signal.aborted) onAbort()
  request.signal.addEventListener('abort', onAbort, { once: true })
  // After this turn's exits are heard: where our own loop was held up, a run that ended in time is not late.
  const limit = startTimer(request.limitSeconds * 1000, () =>
    setImmediate(() => end({ kind: 'timed_out', limitSeconds: request.limitSeconds })),
  )
  const streamCheck = setInterval(() => {
    const detail = streamExcess(streams, request.maxOutputBytes)
    if (detail !== undefined) end({ kind: 'output_exceeded', detail })
  }, STREAM_CHECK_MS)
  const stopScratchCheck = watchScratch(request, (detail) => end({ kind: 'output_exceeded', detail }))
  try {
    return await Promise.race([exited.then(() => undefined), ended])
  } finally {
    request.signal.removeEventListener('abort', onAbort)
    limit.clear()
    clearInterval(streamCheck)
    stopScratchCheck()
  }
}

/** setTimeout that is right beyond its own limit of 24.8 days. */
export function startTimer(ms: number, action: () => void): { clear: () => void } {
  const due = performance.now() + ms
  let timer: NodeJS.Timeout
  const arm = () => {
    const left = due - performance.now()
    timer = left > 2 ** 30 ? setTimeout(arm, 2 ** 30) : setTimeout(action, Math.max(0, left))
  }
  arm()
  return { clear: () => clearTimeout(timer) }
}

function streamExcess(streams: readonly number[], maxBytes: number): string | undefined {
  const excess = ['stdout', 'stderr'].find((_, i) => sizeOf(streams[i] as number) > maxBytes)
  return excess === undefined ? undefined : `${excess} grew beyond ${maxBytes} bytes (MAX_OUTPUT)`
}

/** A disk that does not answer must not end the worker from within a timer. */
function sizeOf(fd: number): number {
  try {
    return fstatSync(fd).size
  } catch {
    return 0
  }
}

/**
 * Looks at the scratch directory at most a twentieth of the time, however many files it holds.
 * @param home counts too
 */
export function watchScratch(request: RunRequest, onExcess: (detail: string) => void, home?: string): () => void {
  let timer: NodeJS.Timeout
  let stopped = false
  const look = async () => {
    const began = performance.now()
    const { workdir, maxScratchBytes } = request
    const inHome = home === undefined ? 0 : await directoryBytes(home, maxScratchBytes)
    const bytes = inHome + (await directoryBytes(workdir.scratch, maxScratchBytes))
    if (stopped) return
    if (bytes > maxScratchBytes) onExcess(`the scratch directory grew beyond ${maxScratchBytes} bytes (MAX_SCRATCH)`)
    else timer = setTimeout(look, Math.max(SCRATCH_CHECK_MS, 20 * (performance.now() - began)))
  }
  timer = setTimeout(look, SCRATCH_CHECK_MS)
  return () => {
    stopped = true
    clearTimeout(timer)
  }
}

/** Ends what is still running and gathers how the first process ended. */
async function conclude(
  request: RunRequest,
  identity: RunIdentity,
  exited: Promise<Exit>,
  end: RunEnd | undefined,
  seen: ReadonlyMap<number, number>,
): Promise<Exit & { kill: KillReceipt | undefined }> {
  const { leader } = identity
  if (end === undefined) {
    const exit = await exited
    if (leader !== undefined && isSurelyOver({ ...identity, leader }, sessions)) return { ...exit, kill: undefined }
    const kill = await sweepLeftovers(identity, { seen })
    if (kill !== undefined) request.launcher?.replace()
    return { ...exit, kill }
  }
  request.onEnding?.(identity.pid, end.kind)
  const startTicks = startTicksOf(identity.pid) ?? identity.startTicks
  const kill = await killTree({ ...identity, startTicks }, { seen })
  request.launcher?.replace()
  // A process that even SIGKILL cannot end (a hung disk) must not hold the slot for ever: the receipt names it.
  if (kill.survivors.includes(identity.pid)) return { exitCode: null, signal: undefined, kill }
  return { ...(await exited), kill }
}

export function classify(algorithm: Algorithm, exitCode: number | null, signal: string | undefined): Outcome {
  if (exitCode === null) return { kind: 'signalled', signal: signal ?? 'an unknown signal' }
  if (exitCode === 0) return { kind: 'success', exitCode: 0 }
  if (exitCode === 65 || algorithm.permanentExits.includes(exitCode)) return { kind: 'rejected', exitCode }
  if (exitCode === 75) return { kind: 'deferred', exitCode: 75 }
  return { kind: 'failed', exitCode }
}

export type Harvest = Pick<RunReport, 'outcome' | 'resultJson' | 'outputs' | 'skipped'>

/** Reads the result and lists the outputs of a run that exited with 0. */
async function harvest(request: RunRequest, stdout: number): Promise<Harvest> {
  const { workdir, algorithm } = request
  const nothing = { resultJson: undefined, outputs: [], skipped: [] }
  const bare = isBare(workdir)
  const excess = bare ? undefined : await scratchExcess(request)
  if (excess !== undefined) return { ...nothing, outcome: { kind: 'output_exceeded', detail: excess } }
  const result = await readResult(stdout, workdir.stdout, algorithm.output)
  if ('problem' in result) return { ...nothing, outcome: { kind: 'output_invalid', detail: result.problem } }
  if (bare) return { ...nothing, outcome: { kind: 'success', exitCode: 0 }, resultJson: result.json }
  return listOutputs(request, result.json)
}

/** @returns what is wrong, when it is larger than it may be */
export async function scratchExcess({ workdir, maxScratchBytes }: RunRequest): Promise<string | undefined> {
  const bytes = await directoryBytes(workdir.scratch, maxScratchBytes)
  return bytes > maxScratchBytes
    ? `the scratch directory grew beyond ${maxScratchBytes} bytes (MAX_SCRATCH)`
    : undefined
}

/** Makes a success of a result, unless the files beside it are more than may be published. */
export async function listOutputs(request: RunRequest, resultJson: string): Promise<Harvest> {
  const { workdir, algorithm, maxScratchBytes, signal } = request
  const nothing = { resultJson: undefined, outputs: [], skipped: [] }
  const found = await collectOutputs(workdir, algorithm.outputs, { maxBytes: maxScratchBytes, signal })
  if (signal.aborted) return { ...nothing, outcome: signal.reason as RunEnd }
  if ('excess' in found) return { ...nothing, outcome: { kind: 'output_exceeded', detail: found.excess } }
  return { outcome: { kind: 'success', exitCode: 0 }, resultJson, ...found }
}

/** What stdout says, as JSON text. */
async function readResult(
  fd: number,
  path: string,
  output: Algorithm['output'],
): Promise<{ json: string } | { problem: string }> {
  const { size } = fstatSync(fd)
  if (size > MAX_RESULT_BYTES) {
    if (output === 'auto') return { json: 'null' }
    return {
      problem: `stdout has ${size} bytes, a result may have ${MAX_RESULT_BYTES}: write large data to a file in the working directory`,
    }
  }
  if (size === 0 && output === 'auto') return { json: 'null' }
  const bytes = size <= SMALL_BYTES ? readHead(fd, size) : await readFile(path)
  const text = decode(bytes)
  if (output !== 'text' && text !== undefined && isJson(text)) return { json: text }
  if (output === 'json') return { problem: jsonProblem(text, bytes.length) }
  if (text === undefined) return output === 'auto' ? { json: 'null' } : { problem: 'stdout is not UTF-8 text' }
  return { json: output === 'auto' && bytes.length > MAX_TEXT_RESULT_BYTES ? 'null' : JSON.stringify(text) }
}

function readHead(fd: number, size: number): Buffer {
  const buffer = Buffer.alloc(size)
  return buffer.subarray(0, readSync(fd, buffer, 0, size, 0))
}

function decode(bytes: Buffer): string | undefined {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    return undefined
  }
}

/** The depth is looked at first: parsing megabytes of brackets takes seconds and a gigabyte, and blocks all slots. */
function isJson(text: string): boolean {
  if (nestingDepth(text) > MAX_RESULT_DEPTH) return false
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

function jsonProblem(text: string | undefined, bytes: number): string {
  if (bytes === 0) return 'stdout is empty, expected one JSON value'
  if (text === undefined) return `stdout (${bytes} bytes) is not UTF-8 text, expected one JSON value`
  if (nestingDepth(text) > MAX_RESULT_DEPTH) return `stdout is nested deeper than ${MAX_RESULT_DEPTH} levels`
  return `stdout (${bytes} bytes) is not one JSON value`
}
