/**
 * The guard of a worker: a process that outlives it, and ends its runs when it dies, in whatever way.
 *
 * It is a shell that reads a pipe of which only the worker holds the other end. The word `done` ends it; the end of the
 * pipe means that the worker is dead, and the shell becomes Node with a program that ends the runs (cli/guard.ts, by way
 * of `endForDeadWorker`). It is in a session of its own, ignores what may be ignored, bears no mark, works in `/` and
 * holds nothing that it inherited: neither the end of a run nor that of a terminal takes it along.
 *
 *     worker lives: sh waits in read(2)  - `done` -> exits
 *                                        - end of pipe -> node guard.js: KILL, looks, ended.json
 *     guard dies: the worker starts another, after a pause that grows while they die soon
 *     guard is stopped: the worker wakes it, and kills it when it does not wake: another is started
 *
 * A worker that is stopped (SIGSTOP) holds the pipe: nothing happens. A process between fork and exec holds a copy of
 * the pipe's end for that moment.
 * Where there is no /proc nothing could be found without the worker: there is no guard, and the next start of a worker
 * accounts for the runs without ending what is left of them.
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { hasProc, readProcess } from './look.ts'
import type { Workshop } from './workshop.ts'

/** Signals that a guard ignores. Those of its faults (SEGV and the like) are not among them. */
export const IGNORED_SIGNALS = [
  ...['SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGTERM', 'SIGTSTP', 'SIGTTIN', 'SIGTTOU', 'SIGUSR1', 'SIGUSR2', 'SIGALRM'],
  ...['SIGPIPE', 'SIGVTALRM'],
] as readonly NodeJS.Signals[]

/** A constant: what differs comes as arguments. */
const SCRIPT = `trap '' ${IGNORED_SIGNALS.map((signal) => signal.slice(3)).join(' ')}
exec 3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&-
while read -r word; do [ "$word" = done ] && exit 0; done
exec "$@" </dev/null`

const FIRST_PAUSE_MS = 50
/** Short: a run that kills the guard again and again wins no time without one. */
const LONGEST_PAUSE_MS = 500
const WATCH_MS = 1000
/** A guard that lived as long did not die of what killed the one before. */
const SOUND_MS = 60_000
const STOP_MS = 2000

export interface GuardOptions {
  readonly workshop: Pick<Workshop, 'id' | 'path' | 'presence' | 'cgroupBase'>
  /** path of the compiled cli/guard.js */
  readonly program: string
  /** Told when the guard died or cannot be started; another follows. Must not throw. */
  readonly onProblem: (problem: string) => void
}

export interface Guard {
  /** of the guard; undefined while there is none */
  pid(): number | undefined
  /** Ends the guard without any effect. */
  stop(): Promise<void>
}

/** Starts the guard of this worker. It keeps neither the process nor its event loop. */
export function startGuard(options: GuardOptions): Guard {
  let child: ChildProcess | undefined
  let pauseMs = FIRST_PAUSE_MS
  let timer: NodeJS.Timeout | undefined
  let isStopping = false

  const start = () => {
    const began = performance.now()
    const replace = (how: string) => {
      child = undefined
      if (isStopping) return
      if (performance.now() - began > SOUND_MS) pauseMs = FIRST_PAUSE_MS
      options.onProblem(`the guard, which ends the runs should this worker be killed, ${how}; another is started`)
      timer = setTimeout(start, pauseMs).unref()
      pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)
    }
    try {
      child = spawnGuard(options, replace)
    } catch (error) {
      replace(`cannot be started (${(error as Error).message})`)
    }
  }

  const watching = hasProc
    ? setInterval(
        makeWatch(() => child),
        WATCH_MS,
      ).unref()
    : undefined
  if (hasProc) start()
  return {
    pid: () => child?.pid,
    async stop() {
      isStopping = true
      clearTimeout(timer)
      clearInterval(watching)
      if (child !== undefined) await endGuard(child)
    },
  }
}

/** Of a guard that is stopped: the first time it is woken, the second time killed, upon which another is started. */
function makeWatch(current: () => ChildProcess | undefined): () => void {
  let woken: ChildProcess | undefined
  return () => {
    const child = current()
    const isStopped = /^[Tt]$/.test((child?.pid === undefined ? undefined : readProcess(child.pid)?.state) ?? '')
    if (isStopped) child?.kill(woken === child ? 'SIGKILL' : 'SIGCONT')
    woken = isStopped ? child : undefined
  }
}

function spawnGuard({ workshop, program }: GuardOptions, onEnd: (how: string) => void): ChildProcess {
  const sweep = [process.execPath, program, workshop.path, workshop.id, workshop.presence, workshop.cgroupBase ?? '']
  const child = spawn('/bin/sh', ['-c', SCRIPT, 'qworker-guard', ...sweep], {
    cwd: '/',
    env: { PATH: '/usr/local/bin:/usr/bin:/bin' },
    stdio: ['pipe', 'ignore', 'ignore'],
    detached: true,
  })
  child.once('error', (error) => onEnd(`cannot be started (${error.message})`))
  child.once('exit', (code, signal) => onEnd(signal === null ? `ended with ${code}` : `was killed (${signal})`))
  // Writing to one that just died.
  child.stdin?.on('error', () => undefined)
  child.unref()
  // A socket as Node makes it; its type does not tell.
  ;(child.stdin as unknown as { unref(): void } | null)?.unref()
  return child
}

async function endGuard(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return
  const exited = once(child, 'exit')
  child.ref()
  child.stdin?.end('done\n')
  // One that is stopped hears nothing.
  const patience = new AbortController()
  void sleep(STOP_MS, undefined, { signal: patience.signal }).then(
    () => child.kill('SIGKILL'),
    () => undefined,
  )
  await exited
  patience.abort()
}
