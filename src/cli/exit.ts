/** How our programs end: one table of exit codes, and output that is out before the end. */

import { writeSync } from 'node:fs'
import type { Tone } from '../report/log.ts'
import { paint } from './color.ts'

/**
 * Exit codes, after BSD's sysexits where it has one.
 *
 * | code | name | meaning |
 * |---|---|---|
 * | 0 | ok | done; with `--wait`: the job is complete |
 * | 1 | failed | the job failed and no better code is known |
 * | 64 | usage | the command line is wrong |
 * | 65 | data | the input is wrong: a payload, a work package, a line of a batch |
 * | 66 | noInput | a file that was named is not there or cannot be read |
 * | 69 | unavailable | the broker, or the HTTP server with the results, cannot be reached or refuses |
 * | 70 | software | a fault of ours |
 * | 73 | cantCreate | a file or directory cannot be made |
 * | 74 | ioError | reading or writing failed |
 * | 75 | tempFail | try again later |
 * | 77 | noPermission | not allowed |
 * | 78 | config | the configuration is wrong |
 * | 124 | timedOut | the time given was over, as with coreutils' timeout |
 * | 130 | interrupted | Ctrl-C |
 */
export const EXIT = {
  ok: 0,
  failed: 1,
  usage: 64,
  data: 65,
  noInput: 66,
  unavailable: 69,
  software: 70,
  cantCreate: 73,
  ioError: 74,
  tempFail: 75,
  noPermission: 77,
  config: 78,
  timedOut: 124,
  interrupted: 130,
} as const

/** What a shell shows for a program that died by a signal: 128 + its number. */
export const SIGNAL_BASE = 128

let stdoutBroken = false
let stdoutFault: NodeJS.ErrnoException | undefined

/**
 * The reader of our stdout may leave early (`| head -1`): that is no fault of ours and harms nothing. Any other failure
 * (a full disk) means that what we print is lost: `endProgram` then tells so and ends with `ioError`.
 */
export function ignoreBrokenPipe(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    stdoutBroken = true
    if (error.code !== 'EPIPE') stdoutFault ??= error
  })
  process.stderr.on('error', () => undefined)
}

/** Writes to stdout; the promise is kept when the text is out, or when nobody reads any more. */
export function writeOut(text: string): Promise<void> {
  return new Promise((resolve) => {
    if (stdoutBroken) resolve()
    else process.stdout.write(text, () => resolve())
  })
}

/** What servers and files say must not steer the terminal: all but TAB and LF, and marks that turn the direction. */
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g

/** Text from outside that is shown: lines stay lines. */
export function withoutControls(text: string): string {
  return text.replace(CONTROLS, '?')
}

/** Writes one message to stderr at once. The first line bears the program's name, further ones are indented. */
export function complain(program: string, message: string, tone: Tone = 'bad'): void {
  try {
    const lines = withoutControls(message.trimEnd()).replaceAll('\n', '\n  ')
    writeSync(2, `${paint('stderr', tone, `${program}:`)} ${lines}\n`)
  } catch {
    // stderr is full or closed: nobody is left to be told.
  }
}

/** Ends the program after all that was written is out; with `ioError` when it could not be written. */
export async function endProgram(program: string, code: number): Promise<never> {
  await writeOut('')
  // The error event follows the callback of the write.
  await new Promise((resolve) => setImmediate(resolve))
  if (stdoutFault === undefined) process.exit(code)
  return endWithError(program, EXIT.ioError, `cannot write to stdout: ${stdoutFault.message}`)
}

/** Ends the program with a message on stderr. */
export function endWithError(program: string, code: number, message: string): never {
  complain(program, message)
  process.exit(code)
}

/** A part of ours that is not there, or for which no descriptor is left: `bin/` tells the remedy. */
export function isUnloadable(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException
  return code === 'EMFILE' || code === 'ERR_MODULE_NOT_FOUND' || code === 'MODULE_NOT_FOUND'
}

/** Resolves when stdout can take more: a program that reads while it writes does not fill the memory. */
export function outputDrained(): Promise<void> {
  if (stdoutBroken || !process.stdout.writableNeedDrain) return Promise.resolve()
  return new Promise((resolve) => {
    const done = () => {
      process.stdout.off('drain', done).off('error', done)
      resolve()
    }
    process.stdout.on('drain', done).on('error', done)
  })
}
