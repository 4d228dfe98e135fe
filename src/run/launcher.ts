/**
 * Starting processes from a small one. Node's own fork pays for all memory of the worker, with each job again; a shell
 * forks in a fraction of that time, and on another processor. So each slot has a shell that waits for scripts on its
 * standard input, and runs each as a child:
 *
 *     worker: a script that sets up and becomes the program  ->  launcher
 *     launcher's child: "p/proc/<pid>" when all is set up, right before exec(2)
 *     launcher: "e<status>" when the child has ended
 *
 * The lines come on the launcher's stderr, where the shell also says what killed a child ("Killed"): that tells a death
 * by a signal from an exit with 128 + n. Shells say nothing of SIGINT and SIGPIPE: these two are told as exits.
 *
 * The launcher leads a session and process group, in which its runs are, one after the other; the kill of a run takes it
 * along, and the next run has another. It traps what ends others, so that who signals its group hears it alone. Nothing
 * but quoted words of ours is ever in a script. It bears the mark of the worker's runs: it ends by itself when its input
 * does, and the guard of a worker that is killed ends it with the runs.
 *
 * Only where there is /proc, and a shell that does as told: this is tried before the first job. Elsewhere, and where
 * another user or a variable that a shell takes for its own is asked for, Node starts the process itself (first-process.ts).
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { constants } from 'node:os'
import { hasProc, type Leader, MARK_VARIABLE, startTicksOf } from './look.ts'

export interface Exit {
  readonly exitCode: number | null
  readonly signal: string | undefined
}

export interface Task {
  /** the program, absolute, and its arguments */
  readonly words: readonly string[]
  readonly environment: Readonly<Record<string, string>>
  readonly directory: string
  readonly stdin: string
  /** appended to */
  readonly stdout: string
  readonly stderr: string
  /** a file that is opened for writing as descriptor 3 */
  readonly entry?: string | undefined
  /** words for ulimit(1), in pairs */
  readonly limits?: readonly string[] | undefined
}

export interface Launched {
  readonly pid: number
  /** of its session and group */
  readonly leader: Leader
  readonly exited: Promise<Exit>
}

/** One at a time may be under way. */
export interface Launcher {
  /** Undefined: this task is not for a launcher, or none can be started now; Node has to start it. */
  start(task: Task): Promise<Launched | { readonly problem: string } | undefined>
  /** The next task has another shell: this one was killed, or something of a run may be left in its session. */
  replace(): void
  close(): void
}

/** Names that a shell, whichever it is, may refuse to set, change or act upon. */
const OF_SHELLS =
  /^(_|BASH.*|CDPATH|COLUMNS|COMP_.*|DIRSTACK|ENV|EUID|FC.*|FPATH|FUNCNAME|GROUPS|HIST.*|IFS|LINENO|LINES|MAIL.*|OLDPWD|OPT(ARG|ERR|IND)|PIPESTATUS|PPID|PROMPT.*|PS[0-9]|PWD|RANDOM|REPLY|SECONDS|SH(ELLOPTS|LVL)|TERM|TIMEFORMAT|TMOUT|UID)$/
const SHELL = '/bin/sh'
const TRAP = 'trap : HUP INT QUIT TERM USR1 USR2 ALRM VTALRM TSTP TTIN TTOU PIPE PROF XCPU XFSZ\n'
/** A child that is not set up by then never will be: its disk hangs. */
const START_MS = 10_000
const MOST_WORDS = 4096

/** @param workerId with which the marks of its runs begin */
export function openLauncher(workerId: string): Launcher {
  let shell: Shell | undefined
  const replace = () => {
    shell?.end()
    shell = undefined
  }
  return {
    async start(task) {
      if (Object.keys(task.environment).some((name) => OF_SHELLS.test(name))) return undefined
      if (!(await hasUsableShell())) return undefined
      if (shell?.isOver) replace()
      shell ??= startShell(workerId)
      return shell?.run(makeScript(task))
    },
    replace,
    close: replace,
  }
}

let usable: Promise<boolean | undefined> | undefined

/** Tried once: that it tells pids, exits and deaths by a signal apart. */
async function hasUsableShell(): Promise<boolean> {
  usable ??= tryShell()
  const isUsable = await usable
  if (isUsable === undefined) usable = undefined
  return isUsable ?? false
}

/** Undefined when none can be started now: that may pass. */
async function tryShell(): Promise<boolean | undefined> {
  if (!hasProc) return false
  const shell = startShell('')
  if (shell === undefined) return undefined
  const clock = setTimeout(() => shell.end(), START_MS)
  try {
    const died = await tryTask(shell, 'kill -KILL $$')
    const ended = await tryTask(shell, 'exit 137')
    return died?.signal === 'SIGKILL' && ended?.exitCode === 137
  } finally {
    clearTimeout(clock)
    shell.end()
  }
}

async function tryTask(shell: Shell, script: string): Promise<Exit | undefined> {
  const nowhere = { directory: '/', stdin: '/dev/null', stdout: '/dev/null', stderr: '/dev/null', environment: {} }
  const launched = await shell.run(makeScript({ ...nowhere, words: [SHELL, '-c', script] }))
  return 'problem' in launched ? undefined : launched.exited
}

/** In a child of the shell. What fails before the child has told its pid, it says on the launcher's stderr. */
function makeScript(task: Task): string {
  const variables = Object.entries(task.environment).map(([name, value]) => `${name}=${quote(value)}`)
  const steps = [
    'cd -P /proc/self',
    'p=$PWD',
    `cd ${quote(task.directory)}`,
    ...pairsOf(task.limits ?? []).map(([option, value]) => `ulimit ${option} ${value}`),
    `exec 4>&2 <${quote(task.stdin)} >>${quote(task.stdout)} 2>>${quote(task.stderr)}`,
    ...(task.entry === undefined ? [] : [`exec 3>${quote(task.entry)}`]),
    'echo "p$p" >&4',
    'exec 4>&-',
    `unset p PWD OLDPWD PATH LC_ALL ${MARK_VARIABLE}`,
    ...(variables.length > 0 ? [`export ${variables.join(' ')}`] : []),
    `exec ${task.words.map(quote).join(' ')}`,
  ]
  return `(${steps.join('&&')})\necho "e$?" >&2\n`
}

function pairsOf(words: readonly string[]): [string, string][] {
  return words.flatMap((word, i): [string, string][] => (i % 2 === 0 ? [[word, words[i + 1] ?? '']] : []))
}

function quote(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`
}

/** What the launcher is doing. */
interface Running {
  /** what the shell said of it */
  words: string
  pid: number | undefined
  readonly onStarted: (launched: Launched | { problem: string }) => void
  readonly onExit: (exit: Exit) => void
  readonly exited: Promise<Exit>
  readonly clock: NodeJS.Timeout
}

/** Those of the launchers that live: nobody else can come into one. */
export const sessions: Set<number> = new Set()

interface Shell {
  readonly isOver: boolean
  run(script: string): Promise<Launched | { problem: string }>
  end(): void
}

/** Undefined when none can be started: who starts the task by other means is told why. */
function startShell(workerId: string): Shell | undefined {
  try {
    const child = spawn(SHELL, [], {
      cwd: '/',
      env: { PATH: '/usr/bin:/bin', LC_ALL: 'C', [MARK_VARIABLE]: `${workerId}.launcher` },
      stdio: ['pipe', 'ignore', 'pipe'],
      detached: true,
    })
    if (child.pid !== undefined) return new ShellProcess(child, child.pid)
    child.once('error', () => undefined)
  } catch {}
  return undefined
}

class ShellProcess implements Shell {
  isOver = false
  readonly #child: ChildProcess
  readonly #leader: Leader
  #running: Running | undefined
  #rest = ''

  constructor(child: ChildProcess, pid: number) {
    this.#child = child
    this.#leader = { pid, startTicks: startTicksOf(pid) }
    sessions.add(pid)
    child.once('error', () => this.#onEnd(null))
    // Not `exit`: what it said last may still be on its way.
    child.once('close', (_, signal) => this.#onEnd(signal))
    child.stdin?.on('error', () => undefined)
    child.stderr?.setEncoding('latin1').on('data', (text: string) => this.#hear(text))
    child.stdin?.write(TRAP)
  }

  run(script: string): Promise<Launched | { problem: string }> {
    return new Promise((onStarted) => {
      let onExit: (exit: Exit) => void = () => undefined
      const exited = new Promise<Exit>((resolve) => {
        onExit = resolve
      })
      const clock = setTimeout(() => this.#giveUp(), START_MS)
      this.#running = { words: '', pid: undefined, onStarted, onExit, exited, clock }
      if (this.isOver) this.#onEnd(null)
      else this.#child.stdin?.write(script)
    })
  }

  end(): void {
    this.isOver = true
    this.#child.stdin?.destroy()
    // It may wait for a child that is beyond any signal.
    this.#child.kill('SIGKILL')
  }

  #giveUp(): void {
    this.#child.kill('SIGKILL')
  }

  #hear(text: string): void {
    const lines = (this.#rest + text).split('\n')
    this.#rest = (lines.pop() as string).slice(-MOST_WORDS)
    for (const line of lines) this.#take(line)
  }

  #take(line: string): void {
    const running = this.#running
    if (running === undefined) return
    const pid = /^p\/proc\/(\d+)$/.exec(line)?.[1]
    const status = /^e(\d+)$/.exec(line)?.[1]
    if (pid !== undefined && running.pid === undefined) {
      running.pid = Number(pid)
      clearTimeout(running.clock)
      running.onStarted({ pid: running.pid, leader: this.#leader, exited: running.exited })
    } else if (status !== undefined) this.#settle(running, exitOf(Number(status), running.words !== ''))
    else if (running.words.length < MOST_WORDS) running.words += `${line}\n`
  }

  #onEnd(signal: NodeJS.Signals | null): void {
    this.isOver = true
    sessions.delete(this.#leader.pid)
    if (this.#running !== undefined) this.#settle(this.#running, { exitCode: null, signal: signal ?? undefined })
  }

  #settle(running: Running, exit: Exit): void {
    this.#running = undefined
    clearTimeout(running.clock)
    const said = running.words.trim() || (this.isOver ? 'its launcher ended' : 'its launcher said nothing')
    if (running.pid === undefined) running.onStarted({ problem: said })
    running.onExit(exit)
  }
}

/** @param isTold the shell said something, which it does when a signal ended its child */
function exitOf(status: number, isTold: boolean): Exit {
  const signal = status > 128 && isTold ? signalOf(status - 128) : undefined
  return signal === undefined ? { exitCode: status, signal: undefined } : { exitCode: null, signal }
}

function signalOf(number: number): string | undefined {
  return Object.entries(constants.signals).find(([, value]) => value === number)?.[0]
}
