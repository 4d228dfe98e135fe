/**
 * Tells systemd how the worker is (sd_notify): ready, reloading, stopping, and that its slots go round (watchdog).
 *
 * Node has no datagram sockets of the Unix domain, so `systemd-notify` sends for us; it is wherever a unit runs. The
 * manager sees a child as the sender: the unit needs NotifyAccess=all (`main` would need the privilege to speak in our
 * name, `exec` means processes that systemd itself started). It finds the child's unit by looking while the child lives,
 * so the helper stays until its message was read: never --no-block.
 *
 * The races that matter here:
 * - One helper at a time, so that messages arrive in their order. What is said meanwhile waits, and what is newer
 *   replaces what is older: a status the status before, STOPPING everything, RELOADING a reload that was not told yet.
 * - A helper that fails leaves its message here; it goes out with the next thing said, or the next feed.
 * - The watchdog is fed by slots that go round, never by a timer: a timer lives on in a worker whose slots are stuck.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import type { ServiceEnvironment } from '../config.ts'

export interface Notifier {
  /** Jobs are taken; also the end of a reload. */
  ready(): void
  /** Algorithms are being read again; `ready` ends it, however it went. */
  reloading(): void
  /** We end; the manager is asked to wait so long, whatever the unit's TimeoutStopSec. */
  stopping(withinSeconds: number): void
  /** One line for `systemctl status`. */
  status(text: string): void
  /** A slot went round. Costs nothing but once in a quarter of the watchdog's time. */
  feed(): void
  /** Resolves when all is said, or cannot be. Never rejects. */
  close(): Promise<void>
}

export interface NotifierOptions {
  readonly service: ServiceEnvironment
  /** Told once, when nothing gets through; again only after something did. */
  readonly onProblem: (problem: string) => void
  /** milliseconds of a clock that never goes back */
  readonly now?: () => number
}

/** Feeding at a quarter of the watchdog's time: two slots may be late, or two helpers fail. */
const FEEDS_PER_WATCHDOG = 4
/** A little more than systemd-notify itself waits for the manager. */
const HELPER_MS = 6_000
/** Between a failure and the feed that tries again. */
const RETRY_MS = 5_000
const MAX_STATUS_LENGTH = 200
const MAX_COMPLAINT_LENGTH = 300

/** One datagram. */
interface Message {
  /** the state first, then what belongs to it; undefined when only the rest is said */
  readonly state: readonly string[] | undefined
  readonly status: string | undefined
  readonly feeds: boolean
}

const SILENT: Notifier = {
  ready: () => undefined,
  reloading: () => undefined,
  stopping: () => undefined,
  status: () => undefined,
  feed: () => undefined,
  close: () => Promise.resolve(),
}

/** Without a manager that listens (no NOTIFY_SOCKET) all is silence. */
export function openNotifier({ service, onProblem, now = () => performance.now() }: NotifierOptions): Notifier {
  const { notifySocket, watchdogMs, path } = service
  if (notifySocket === undefined) return SILENT
  const send = (lines: readonly string[]) => runHelper(lines, { NOTIFY_SOCKET: notifySocket, PATH: path })
  return new Messenger(send, watchdogMs, onProblem, now)
}

class Messenger implements Notifier {
  readonly #send: (lines: readonly string[]) => Promise<string | undefined>
  readonly #onProblem: (problem: string) => void
  readonly #now: () => number
  /** undefined: nobody watches */
  readonly #feedEveryMs: number | undefined
  /** not told yet, oldest first; at most three */
  #states: (readonly string[])[] = []
  #status: string | undefined
  #feeds = false
  #fedAt = Number.NEGATIVE_INFINITY
  #failedAt = Number.NEGATIVE_INFINITY
  #isFailing = false
  #isSending = false
  #sent: Promise<void> = Promise.resolve()

  constructor(
    send: (lines: readonly string[]) => Promise<string | undefined>,
    watchdogMs: number | undefined,
    onProblem: (problem: string) => void,
    now: () => number,
  ) {
    this.#send = send
    this.#feedEveryMs = watchdogMs === undefined ? undefined : watchdogMs / FEEDS_PER_WATCHDOG
    this.#onProblem = onProblem
    this.#now = now
  }

  ready(): void {
    this.#enter(['READY=1'])
  }

  reloading(): void {
    // systemd 253 and newer (Type=notify-reload) want the time, to tell this reload from an older one.
    this.#enter(['RELOADING=1', `MONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`])
  }

  stopping(withinSeconds: number): void {
    this.#enter(['STOPPING=1', `EXTEND_TIMEOUT_USEC=${Math.ceil(withinSeconds * 1e6)}`])
  }

  status(text: string): void {
    this.#status = asLine(text)
    this.#flush()
  }

  feed(): void {
    if (this.#isSending) return
    const now = this.#now()
    const every = this.#feedEveryMs
    if (now - this.#failedAt < Math.min(RETRY_MS, every ?? RETRY_MS)) return
    if (every !== undefined && now - this.#fedAt >= every) this.#feeds = true
    if (this.#feeds || this.#states.length > 0 || this.#status !== undefined) this.#flush()
  }

  async close(): Promise<void> {
    this.#flush()
    await this.#sent
  }

  #enter(state: readonly string[]): void {
    const [name] = state
    const names = this.#states.map(([first]) => first)
    if (names.at(-1) === 'STOPPING=1' && name !== 'STOPPING=1') return
    if (name === 'STOPPING=1') this.#states = []
    else if (names.at(-1) === name) this.#states.pop()
    else if (name === 'RELOADING=1' && names.at(-2) === name) this.#states.splice(-2)
    this.#states.push(state)
    this.#flush()
  }

  #flush(): void {
    if (this.#isSending) return
    this.#isSending = true
    this.#sent = this.#sendAll()
  }

  async #sendAll(): Promise<void> {
    for (let message = this.#take(); message !== undefined; message = this.#take()) {
      const problem = await this.#send(linesOf(message))
      if (problem === undefined) {
        this.#isFailing = false
        continue
      }
      this.#putBack(message)
      if (!this.#isFailing) this.#onProblem(problem)
      this.#isFailing = true
      break
    }
    this.#isSending = false
  }

  #take(): Message | undefined {
    const message = { state: this.#states.shift(), status: this.#status, feeds: this.#feeds }
    if (message.feeds) this.#fedAt = this.#now()
    this.#status = undefined
    this.#feeds = false
    return message.state === undefined && message.status === undefined && !message.feeds ? undefined : message
  }

  #putBack({ state, status, feeds }: Message): void {
    this.#failedAt = this.#now()
    this.#status ??= status
    if (feeds) this.#fedAt = Number.NEGATIVE_INFINITY
    if (state === undefined) return
    const later = this.#states
    this.#states = []
    for (const one of [state, ...later]) this.#enter(one)
  }
}

function linesOf({ state = [], status, feeds }: Message): string[] {
  return [...state, ...(status === undefined ? [] : [`STATUS=${status}`]), ...(feeds ? ['WATCHDOG=1'] : [])]
}

/** A line end would begin another variable: MAINPID, say. */
function asLine(text: string): string {
  return text.replace(/[\p{Cc}\p{Cs}\u2028\u2029]+/gu, ' ').slice(0, MAX_STATUS_LENGTH)
}

/** Sends one datagram. Resolves to what went wrong, or undefined; never rejects, and never waits longer than its time. */
function runHelper(lines: readonly string[], env: Readonly<Record<string, string>>): Promise<string | undefined> {
  return new Promise((resolve) => {
    const end = (why: string | undefined) => {
      clearTimeout(timer)
      resolve(why === undefined ? undefined : `systemd was not told ${lines[0]}: ${why}`)
    }
    let helper: ChildProcess | undefined
    // Not spawn's own `timeout`: its timer stays when nothing could be started.
    const timer = setTimeout(() => {
      helper?.kill('SIGKILL')
      end(`systemd-notify did not end within ${HELPER_MS / 1000} s`)
    }, HELPER_MS)
    try {
      helper = spawn('systemd-notify', [...lines], { env, cwd: '/', stdio: ['ignore', 'ignore', 'pipe'] })
      helper.on('error', (error: NodeJS.ErrnoException) => end(startProblem(error, env.PATH)))
      let complaint = ''
      // Without a descriptor left there are no streams, whatever the types say: the event above tells EMFILE.
      helper.stderr
        ?.on('error', () => undefined)
        .on('data', (chunk) => {
          if (complaint.length < MAX_COMPLAINT_LENGTH) complaint += chunk
        })
      helper.on('close', (code, signal) =>
        end(code === 0 ? undefined : `systemd-notify: ${asLine(complaint.trim()) || (code ?? signal)}`),
      )
    } catch (error) {
      end(startProblem(error as NodeJS.ErrnoException, env.PATH))
    }
  })
}

function startProblem(error: NodeJS.ErrnoException, path: string | undefined): string {
  if (error.code === 'ENOENT') return `there is no systemd-notify in ${path} (Debian: package systemd)`
  return `systemd-notify did not start: ${error.message}`
}
