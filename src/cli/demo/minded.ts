/** Programs that end when the demo ends, however it ends: each has a minder (minder.ts). */

import { spawn } from 'node:child_process'
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
  const child = spawn(process.execPath, [MINDER, folder, program, ...args], {
    env: { ...algorithmEnvironment(), HOME: home },
    stdio: ['pipe', 'pipe', 'pipe'],
    // Ctrl-C reaches us alone.
    detached: true,
  })
  child.stdin.on('error', () => undefined)
  child.stdout.setEncoding('utf8').on('data', onOut)
  child.stderr.setEncoding('utf8')
  eachLine(child.stderr, onErrorLine)
  const ended = new Promise<number>((resolve) => {
    child.once('error', (error) => {
      onErrorLine(`cannot be started: ${error.message}`)
      resolve(EXIT.software)
    })
    child.once('close', (code) => resolve(code ?? SIGNAL_BASE))
  })
  return {
    ended,
    end() {
      child.stdin.destroy()
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

function eachLine(stream: Readable, onLine: (line: string) => void): void {
  stream.on('data', makeLineReader(onLine))
}
