/** A demo as a stranger starts it: Node alone in PATH, a temporary folder of its own, and nothing left afterwards. */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { connect as openSocket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished } from 'vitest'
import { PROJECT, until } from '../../support/installation.ts'

export const DEMO = join(PROJECT, 'dist', 'cli', 'demo.js')

export interface Stranger {
  /** TMPDIR of the demo */
  readonly temporary: string
  readonly env: Record<string, string>
}

export interface RunningDemo {
  readonly child: ChildProcess
  readonly said: { stdout: string; stderr: string }
  /** exit code, once all that it said was heard */
  readonly ended: Promise<number | string | null>
  hears(what: string | RegExp): Promise<void>
}

/** The folder has blanks in its name. */
export function makeStranger(): Stranger {
  const base = mkdtempSync(join(tmpdir(), 'qworker demo test-'))
  const [bin, temporary] = [join(base, 'bin'), join(base, 'tmp folder')]
  mkdirSync(bin)
  mkdirSync(temporary)
  symlinkSync(process.execPath, join(bin, 'node'))
  onTestFinished(() => {
    const left = findProcesses(base)
    for (const { pid } of left) process.kill(pid, 'SIGKILL')
    rmSync(base, { recursive: true, force: true, maxRetries: 5 })
    expect(left, 'processes are left').toEqual([])
  })
  return { temporary, env: { PATH: bin, TMPDIR: temporary, LANG: 'C.UTF-8' } }
}

export function startDemo({ env }: Stranger, args: string[] = [], program = [process.execPath, DEMO]): RunningDemo {
  const [file = '', ...first] = program
  const child = spawn(file, [...first, ...args], { env, cwd: PROJECT, stdio: ['pipe', 'pipe', 'pipe'] })
  const said = { stdout: '', stderr: '' }
  const listeners = new Set<() => void>()
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', (text) => {
      said[name] += text
      for (const listener of listeners) listener()
    })
  }
  const closed = once(child, 'close')
  return {
    child,
    said,
    ended: closed.then(([code, signal]) => code ?? signal),
    hears: (what) =>
      new Promise((resolve, reject) => {
        const look = () => {
          if (typeof what === 'string' ? said.stdout.includes(what) : what.test(said.stdout)) resolve()
        }
        listeners.add(look)
        void closed.then(() => reject(new Error(`demo ended before ${what}:\n${said.stdout}${said.stderr}`)))
        look()
      }),
  }
}

/** All that bear the folder in their environment or their command line. */
export function findProcesses(folder: string): { pid: number; command: string }[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((name) => ({ pid: Number(name), command: read(name, 'cmdline'), environment: read(name, 'environ') }))
    .filter(({ command, environment }) => command.includes(folder) || environment.includes(folder))
    .map(({ pid, command }) => ({ pid, command: command.replaceAll('\0', ' ') }))
}

function read(pid: string, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8')
  } catch {
    return ''
  }
}

/** The helper that outlives a worker by a moment may still be looking around. */
export async function expectNothingLeft({ temporary }: Stranger, said: string): Promise<void> {
  await until('no process is left', () => findProcesses(temporary).length === 0)
  expect(readdirSync(temporary)).toEqual([])
  for (const [, port] of said.matchAll(/127\.0\.0\.1:(\d+)/g)) expect(await isOpen(Number(port)), port).toBe(false)
}

function isOpen(port: number): Promise<boolean> {
  const socket = openSocket(port, '127.0.0.1')
  return once(socket, 'connect').then(
    () => {
      socket.destroy()
      return true
    },
    () => false,
  )
}
