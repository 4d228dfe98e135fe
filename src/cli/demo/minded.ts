/** Programs that end when the demo ends, however it ends: each has a minder (minder.ts). */

import { type ChildProcess, spawn } from 'node:child_process'
import { constants } from 'node:os'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { algorithmEnvironment } from '../../config.ts'
import { EXIT, SIGNAL_BASE } from '../exit.ts'

const MINDER = join(import.meta.dirname, 'minder.js')

export interface MindedOptions {
  /** a program of Node's */
  readonly program: string
  readonly args: readonly string[]
  readonly home: string
  /** removed after its end; undefined: none */
  readonly folder?: string
  readonly onOut: (text: string) => void
  readonly onErrorLine: (line: string) => void
}

export interface Minded {
  /** Its exit code, or 128 + signal, after all that it wrote was read. Never rejects. */
  readonly ended: Promise<number>
  /** Asks it to end. */
  end(): Promise<number>
}

export function startMinded({ program, args, home, folder = '', onOut, onErrorLine }: MindedOptions): Minded {
  const child: ChildProcess = spawn(process.execPath, [MINDER, folder, program, ...args], {
    env: { ...algorithmEnvironment(), HOME: home },
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    // Ctrl-C reaches us alone.
    detached: true,
  })
  const [stdout, stderr] = [child.stdout as Readable, child.stderr as Readable]
  let pid: number | undefined
  child.once('message', (message) => {
    pid = Number(message)
  })
  child.once('exit', (_, signal) => {
    // Without its minder it is ours to end: it holds its stdout for as long as it lives.
    if (signal !== null && pid !== undefined && !stdout.readableEnded) terminate(pid)
  })
  stdout.setEncoding('utf8').on('data', onOut)
  stderr.setEncoding('utf8').on('data', makeLineReader(onErrorLine))
  const ended = new Promise<number>((resolve) => {
    child.once('error', (error) => {
      onErrorLine(`cannot be started: ${error.message}`)
      resolve(EXIT.software)
    })
    child.once('close', (code, signal) => resolve(code ?? SIGNAL_BASE + constants.signals[signal ?? 'SIGKILL']))
  })
  return {
    ended,
    end() {
      // Not by disconnecting: of a child that its parent disconnected Node tells no end (`close`).
      if (child.connected) child.send('end', () => undefined)
      return ended
    },
  }
}

/** @returns takes text in pieces, and hands on its lines */
export function makeLineReader(onLine: (line: string) => void): (text: string) => void {
  let partial = ''
  return (text) => {
    const lines = (partial + text).split('\n')
    partial = lines.pop() ?? ''
    for (const line of lines) onLine(line)
  }
}

function terminate(pid: number): void {
  try {
    process.kill(pid, 'SIGTERM')
  } catch {
    // gone since we looked
  }
}
