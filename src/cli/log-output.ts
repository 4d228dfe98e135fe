/**
 * Where the log of a worker goes: stdout, whatever that is. Node writes to a file at once and waits for its disk, and a
 * disk that hangs would hold up the ends of runs. So files are written in the background. Of what is not taken, no more
 * than some MiB are kept; what a full disk refuses is dropped, and later lines come again.
 */

import { fstatSync, write } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { writeOut } from './exit.ts'

export interface LogOutput {
  write(text: string): void
  /** Resolves when all is written, or dropped, or after some seconds. */
  flush(): Promise<void>
}

const STDOUT = 1
const MAX_UNREAD_BYTES = 4 * 2 ** 20
const FLUSH_MS = 3_000

export function openLogOutput(): LogOutput {
  return isFile() ? new FileOutput() : { write: writeBounded, flush: async () => {} }
}

function isFile(): boolean {
  try {
    return fstatSync(STDOUT).isFile()
  } catch {
    return false
  }
}

function writeBounded(text: string): void {
  if (process.stdout.writableLength < MAX_UNREAD_BYTES) void writeOut(text)
}

class FileOutput implements LogOutput {
  #waiting: string[] = []
  #waitingLength = 0
  #writing: Promise<void> | undefined

  write(text: string): void {
    if (this.#waitingLength > MAX_UNREAD_BYTES) return
    this.#waiting.push(text)
    this.#waitingLength += text.length
    this.#writing ??= this.#writeAll().finally(() => {
      this.#writing = undefined
    })
  }

  async flush(): Promise<void> {
    const patience = new AbortController()
    await Promise.race([this.#writing, sleep(FLUSH_MS, undefined, { signal: patience.signal }).catch(() => undefined)])
    patience.abort()
  }

  async #writeAll(): Promise<void> {
    while (this.#waiting.length > 0) {
      const bytes = Buffer.from(this.#waiting.join(''))
      this.#waiting = []
      this.#waitingLength = 0
      await writeWhole(bytes)
    }
  }
}

/** What the disk does not take is lost. */
async function writeWhole(bytes: Buffer): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const written = await new Promise<number>((resolve) => {
      write(STDOUT, bytes, done, bytes.length - done, null, (error, count) => resolve(error === null ? count : 0))
    })
    if (written === 0) return
    done += written
  }
}
