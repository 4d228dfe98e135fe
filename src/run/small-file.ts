/** A file that people name: read to its end, whatever it is, unless it is too large or nothing comes of it. */

import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'

/** For a pipe, as of `<(command)`, to have its first byte, and each further piece. */
const PIPE_MS = 5_000
const LOOK_MS = 10

/**
 * Waits neither for somebody to open the other end of a pipe, which would hold a thread of Node's, and with it the end
 * of the program, nor for the end of what has none, such as /dev/zero.
 * @returns undefined when it has more than that
 * @throws what the file system throws; ETIMEDOUT for a pipe that nobody writes
 */
export async function readSmallFile(file: string, maxBytes: number, pipeMs = PIPE_MS): Promise<Buffer | undefined> {
  const handle = await open(file, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    const isPipe = (await handle.stat()).isFIFO()
    const bytes = Buffer.alloc(maxBytes + 1)
    let length = 0
    while (length <= maxBytes) {
      const count = isPipe ? await readPipe(handle, bytes, length, pipeMs) : await readOnce(handle, bytes, length)
      if (count === 0) return bytes.subarray(0, length)
      length += count
    }
    return undefined
  } finally {
    await handle.close()
  }
}

async function readOnce(handle: FileHandle, bytes: Buffer, at: number): Promise<number> {
  return (await handle.read(bytes, at, bytes.length - at, null)).bytesRead
}

/** A pipe that nobody has opened yet reads as one that has ended: it has not begun before its first byte. */
async function readPipe(handle: FileHandle, bytes: Buffer, at: number, pipeMs: number): Promise<number> {
  const began = performance.now()
  while (performance.now() - began < pipeMs) {
    const count = await readOnce(handle, bytes, at).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EAGAIN') throw error
    })
    if (count !== undefined && (count > 0 || at > 0)) return count
    await sleep(LOOK_MS)
  }
  throw Object.assign(new Error('nothing comes out of the pipe'), { code: 'ETIMEDOUT' })
}
