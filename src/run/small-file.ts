/** A file that people name: read to its end, whatever it is, unless it is too large or nothing comes of it. */

import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'

/** For a pipe, as of `<(command)`, to have its first byte, and each further piece. */
const PIPE_MS = 5_000
const LOOK_MS = 10

/**
 * Waits neither for somebody to open the other end of a pipe, which would hold a thread of Node's, and with it the end
 * of the program, nor for the end of what has none, such as /dev/zero. What is no pipe is read at once, in this turn: of
 * two reloads the first has its file before the second one's is written.
 * @returns undefined when it has more than that
 * @throws what the file system throws; ETIMEDOUT for a pipe that nobody writes
 */
export async function readSmallFile(file: string, maxBytes: number, pipeMs = PIPE_MS): Promise<Buffer | undefined> {
  const descriptor = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    const isPipe = fstatSync(descriptor).isFIFO()
    const bytes = Buffer.alloc(maxBytes + 1)
    let length = 0
    while (length <= maxBytes) {
      const count = isPipe
        ? await readPipe(descriptor, bytes, length, pipeMs)
        : readSync(descriptor, bytes, length, bytes.length - length, null)
      if (count === 0) return bytes.subarray(0, length)
      length += count
    }
    return undefined
  } finally {
    closeSync(descriptor)
  }
}

/** A pipe that nobody has opened yet reads as one that has ended: it has not begun before its first byte. */
async function readPipe(descriptor: number, bytes: Buffer, at: number, pipeMs: number): Promise<number> {
  const { setTimeout: sleep } = await import('node:timers/promises')
  const began = performance.now()
  while (performance.now() - began < pipeMs) {
    const count = readNow(descriptor, bytes, at)
    if (count !== undefined && (count > 0 || at > 0)) return count
    await sleep(LOOK_MS)
  }
  throw Object.assign(new Error('nothing comes out of the pipe'), { code: 'ETIMEDOUT' })
}

/** Undefined when nothing is there yet. */
function readNow(descriptor: number, bytes: Buffer, at: number): number | undefined {
  try {
    return readSync(descriptor, bytes, at, bytes.length - at, null)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return undefined
    throw error
  }
}
