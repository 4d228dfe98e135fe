/**
 * One warm process: started once, handed a line for each job, ended once.
 *
 *     idle --hand--> busy --a line--> idle
 *     idle --it wrote, closed its stdin or stdout, or exited--> spoilt
 *     busy --the same, or a line that is too long--> spoilt
 *     any --end--> spoilt
 *
 * It is busy until its caller says that the job is done. Who is spoilt is handed nothing more. What it was busy with is
 * told to the caller, who knows whom to blame, and ends it.
 *
 * The races that matter here:
 * - It may die right before it is handed a line, which nobody notices at that moment. Its stdin is a socket of which we
 *   read the other end: when a line was not read to the end, that end is reset; else it just ends.
 * - It may answer and die: the answer may be read after the exit is heard. So the exit is told when all was read.
 * - A child of it may hold its stdout: what it left is ended first.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import {
  closeSync,
  createReadStream,
  createWriteStream,
  fchownSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readSync,
  writeFileSync,
} from 'node:fs'
import type { Duplex, Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import type { KillReceipt } from '../job/outcome.ts'
import type { Algorithm } from './algorithm.ts'
import { ENTRY_FD, entryLauncher, type Group, removeGroups } from './cgroup.ts'
import { findDescriptorShortage, killTree, type RunIdentity, sweepLeftovers } from './kill.ts'
import type { Exit } from './launcher.ts'
import { startTicksOf } from './look.ts'
import { type Meter, openMeter, type Reading } from './usage.ts'
import { MAX_ANSWER_BYTES } from './warm-line.ts'
import { decodeTail } from './workdir.ts'

export interface WarmStart {
  readonly algorithm: Algorithm
  readonly file: string
  readonly args: readonly string[]
  readonly environment: Readonly<Record<string, string>>
  readonly mark: string
  /** its own working directory */
  readonly home: string
  /** where its stderr goes */
  readonly stderr: string
  /** real path of the folder that holds these two, and nothing of others */
  readonly place: string
  readonly group: Group | undefined
  readonly cgroupBase: string | undefined
  /** Called at most once, when it is spoilt while it has no job; with how it is to be ended. Must not throw. */
  readonly onSpoilt: (process: WarmProcess, how: 'kill' | 'close') => void
}

export type Reply =
  /** without its end */
  | { readonly kind: 'line'; readonly bytes: Buffer }
  /**
   * It exited, or closed its stdin or stdout (then it was ended, and there is no `exit`). `isUnread`: it had not read
   * the line.
   */
  | { readonly kind: 'gone'; readonly exit: Exit | undefined; readonly isUnread: boolean }
  | { readonly kind: 'too_long' }

/** Descriptor of the socket that becomes its stdin: that of descriptor 0 could not be read on our side. */
const STDIN_FD = ENTRY_FD + 1
/** Fixed text. A shell adds to the environment what it is to take out again. */
const STDIN_SCRIPT = `unset PWD OLDPWD; exec "$@" <&${STDIN_FD} ${ENTRY_FD}<&- ${STDIN_FD}<&-`
/** Two sockets of two ends, a pipe of libuv's, and what we read /proc by. */
const SPAWN_DESCRIPTORS = 7
/** After the end of its stdin, before it is killed. */
const CLOSE_MS = 1000
/** A process that dies closes its streams before its exit is heard. */
const DYING_MS = 200
/** Nobody who could write is left: what was written arrives at once. */
const LAST_WORDS_MS = 1000
const SMALL_BYTES = 64 * 2 ** 10
/** Answers to the last jobs are known for what they are when they come again. */
const REMEMBERED = 16

/** @returns the error, when it cannot be started; the descriptors of the group and of stderr are closed in any case */
export function startWarmProcess(start: WarmStart): WarmProcess | { failure: Promise<NodeJS.ErrnoException> } {
  const { algorithm, group } = start
  let stderr: number | undefined
  try {
    // Appending, so that it may be cut between two jobs.
    stderr = openSync(start.stderr, 'a+', 0o644)
    const { user, restraint: { standIn = [], launcher = [] } = {} } = algorithm
    // Who opens /dev/stderr anew needs the right to.
    if (user !== undefined) fchownSync(stderr, user.uid, user.gid)
    // Where descriptors run out in the middle of it, spawn of Node 20 keeps the sockets that it has made.
    const shortage = findDescriptorShortage(SPAWN_DESCRIPTORS)
    if (shortage !== undefined) throw Object.assign(new Error(`too few descriptors (${shortage})`), { code: shortage })
    const entry = group === undefined ? standIn : entryLauncher(standIn)
    // Before the limits: where few descriptors may be open, a shell cannot keep those aside that it replaces.
    const reader = ['/bin/sh', '-c', STDIN_SCRIPT, 'warm']
    const [first = '', ...rest] = [...entry, ...reader, ...launcher, start.file, ...start.args]
    const child = spawn(first, rest, {
      cwd: start.home,
      env: start.environment,
      stdio: ['ignore', 'pipe', stderr, group?.entry ?? 'ignore', 'pipe'],
      detached: true,
      ...(user && { uid: user.uid, gid: user.gid }),
    })
    const failure = new Promise<NodeJS.ErrnoException>((resolve) => child.once('error', resolve))
    if (child.pid !== undefined) return new WarmProcess(child, child.pid, start, stderr)
    closeSync(stderr)
    return { failure }
  } catch (error) {
    if (stderr !== undefined) closeSync(stderr)
    return { failure: Promise.resolve(error as NodeJS.ErrnoException) }
  } finally {
    if (group !== undefined) closeSync(group.entry)
  }
}

export class WarmProcess {
  readonly identity: RunIdentity
  readonly meter: Meter | undefined
  readonly home: string
  /** the program */
  readonly file: string
  readonly group: Group | undefined
  /** jobs that it was handed */
  served = 0
  /** at the end of its last job */
  reading: Reading | undefined
  /** processes of it that were seen while a job went on, with their starts */
  seen: ReadonlyMap<number, number> = new Map()
  readonly #start: WarmStart
  readonly #child: ChildProcess
  readonly #stdin: Duplex
  readonly #stdout: Readable
  readonly #stderr: number
  readonly #exited: Promise<void>
  readonly #closed: Promise<void>
  readonly #recent: string[] = []
  #exit: Exit | undefined
  #isUnread = false
  #isSpoilt = false
  #isBusy = false
  #isReleased = false
  #reply: ((reply: Reply) => void) | undefined
  #half: Buffer[] = []
  #halfBytes = 0
  #ending: Promise<KillReceipt | undefined> | undefined

  constructor(child: ChildProcess, pid: number, start: WarmStart, stderr: number) {
    const { mark, place, cgroupBase } = start
    this.identity = { pid, mark, workdir: place, startTicks: startTicksOf(pid), cgroupBase }
    this.meter = openMeter(pid)
    this.home = start.home
    this.file = start.file
    this.group = start.group
    this.#start = start
    this.#child = child
    this.#stdin = child.stdio[STDIN_FD] as unknown as Duplex
    this.#stdout = child.stdout as Readable
    this.#stderr = stderr
    this.#exited = new Promise((resolve) =>
      child.once('exit', (exitCode, signal) => {
        this.#exit = { exitCode, signal: signal ?? undefined }
        resolve()
        this.#onGone()
      }),
    )
    this.#closed = new Promise((resolve) => child.once('close', () => resolve()))
    this.#stdout.on('data', (chunk: Buffer) => this.#take(chunk))
    this.#stdout.on('error', () => undefined)
    this.#stdout.once('end', () => this.#onGone())
    this.#stdin.on('data', () => undefined)
    // EPIPE of a write, ECONNRESET of our reading.
    this.#stdin.on('error', () => {
      this.#isUnread = true
      this.#onGone()
    })
    // Read to the end and closed: it may answer yet, and wants no more.
    this.#stdin.once('end', () => this.#spoil('close'))
  }

  /** It may be handed a job, as far as we know. */
  isReady(): boolean {
    return !this.#isSpoilt && this.#exit === undefined
  }

  get isSpoilt(): boolean {
    return this.#isSpoilt
  }

  get isBusy(): boolean {
    return this.#isBusy
  }

  /** Whether the job of that uuid was among its last ones. */
  hadJob(uuid: string): boolean {
    return this.#recent.includes(uuid)
  }

  /** Hands it a job. Resolves to what comes of it; never, when the process is ended by `end` meanwhile. */
  hand(line: string): Promise<Reply> {
    this.served++
    this.#isBusy = true
    const reply = new Promise<Reply>((resolve) => {
      this.#reply = resolve
    })
    this.#stdin.write(line)
    return reply
  }

  /** The job in hand is done: what it writes from now on is nobody's. */
  rest(uuid: string): void {
    this.#isBusy = false
    this.#recent.push(uuid)
    if (this.#recent.length > REMEMBERED) this.#recent.shift()
  }

  #take(chunk: Buffer): void {
    if (this.#reply === undefined) {
      this.#spoil('kill')
      return
    }
    const end = chunk.indexOf(0x0a)
    this.#halfBytes += end < 0 ? chunk.length : end
    if (this.#halfBytes > MAX_ANSWER_BYTES) {
      this.#half = []
      this.#settle({ kind: 'too_long' })
      this.#spoil('kill')
      return
    }
    this.#half.push(end < 0 ? chunk : chunk.subarray(0, end))
    if (end < 0) return
    const bytes = this.#half.length === 1 ? (this.#half[0] as Buffer) : Buffer.concat(this.#half)
    this.#half = []
    this.#halfBytes = 0
    this.#settle({ kind: 'line', bytes })
    if (end + 1 < chunk.length) this.#spoil('kill')
  }

  #settle(reply: Reply): void {
    const resolve = this.#reply
    this.#reply = undefined
    resolve?.(reply)
  }

  #spoil(how: 'kill' | 'close'): void {
    // What it writes on is of no interest, and must not fill our memory.
    if (this.#reply === undefined && this.#ending === undefined) this.#stdout.pause()
    if (this.#isSpoilt) return
    this.#isSpoilt = true
    if (!this.#isBusy) this.#start.onSpoilt(this, how)
  }

  #onGone(): void {
    if (this.#ending !== undefined) return
    this.#spoil('close')
    if (this.#reply !== undefined) void this.#tellGone()
  }

  async #tellGone(): Promise<void> {
    await this.#patiently(this.#exited, DYING_MS)
    const exit = this.#exit
    await this.end('kill')
    // On a busy machine its own end may be heard only now.
    const isOurs = this.#exit?.signal === 'SIGTERM' || this.#exit?.signal === 'SIGKILL'
    this.#settle({ kind: 'gone', exit: exit ?? (isOurs ? undefined : this.#exit), isUnread: this.#isUnread })
  }

  /**
   * Ends it with all its processes. The first call counts.
   * @param how `close`: by the end of its stdin, and by force a second later. What it leaves is killed in any case.
   * @returns undefined when no force was needed
   */
  end(how: 'kill' | 'close'): Promise<KillReceipt | undefined> {
    this.#isSpoilt = true
    this.#ending ??= this.#end(how)
    return this.#ending
  }

  async #end(how: 'kill' | 'close'): Promise<KillReceipt | undefined> {
    if (this.#exit === undefined && how === 'close') {
      this.#stdin.end()
      await this.#patiently(this.#exited, CLOSE_MS)
    }
    const { identity, seen } = this
    const kill =
      this.#exit === undefined ? await killTree(identity, { seen }) : await sweepLeftovers(identity, { seen })
    // One that even SIGKILL cannot end must not hold the slot for ever.
    if (kill?.survivors.includes(identity.pid)) return kill
    await this.#exited
    this.#stdout.resume()
    await this.#patiently(this.#closed, LAST_WORDS_MS)
    return kill
  }

  /** How it ended, after `end`. */
  get exit(): Exit | undefined {
    return this.#exit
  }

  async #patiently(event: Promise<void>, ms: number): Promise<void> {
    const patience = new AbortController()
    await Promise.race([event, sleep(ms, undefined, { signal: patience.signal }).catch(() => undefined)])
    patience.abort()
  }

  /** Bytes on stderr since it was last cut. */
  stderrBytes(): number {
    try {
      return fstatSync(this.#stderr).size
    } catch {
      // A disk that does not answer must not end the worker from within a timer.
      return 0
    }
  }

  /**
   * Moves what is on stderr to a file, and cuts it.
   * @param maxBytes the rest is dropped
   * @returns the end of it
   */
  async takeStderr(target: string, maxBytes: number, tailBytes: number): Promise<string> {
    const size = Math.min(this.stderrBytes(), maxBytes)
    if (size <= SMALL_BYTES) writeFileSync(target, this.#readStderr(0, size), { flag: 'wx', mode: 0o644 })
    else {
      const source = createReadStream('', { fd: this.#stderr, autoClose: false, start: 0, end: size - 1 })
      await pipeline(source, createWriteStream(target, { flags: 'wx', mode: 0o644 }))
    }
    const tail = this.#readStderr(Math.max(0, size - tailBytes), size)
    ftruncateSync(this.#stderr, 0)
    return decodeTail(tail, size > tailBytes)
  }

  #readStderr(start: number, end: number): Buffer {
    const buffer = Buffer.alloc(end - start)
    return buffer.subarray(0, readSync(this.#stderr, buffer, 0, buffer.length, start))
  }

  /** Gives back what we hold of it, after `end`. Once. @returns groups that cannot be removed */
  async release(): Promise<string[]> {
    if (this.#isReleased) return []
    this.#isReleased = true
    for (const stream of [this.#stdin, this.#stdout]) stream.destroy()
    this.#child.unref()
    this.meter?.close()
    closeSync(this.#stderr)
    return this.group === undefined ? [] : removeGroups(this.identity)
  }
}
