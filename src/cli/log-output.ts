/**
 * Where the log of a worker goes: stdout, whatever that is. Node writes to a file at once and waits for its disk, and a
 * disk that hangs would hold up the ends of runs. So files are written in the background. Of what is not taken, no more
 * than some MiB are kept; what a full disk refuses is dropped, and later lines come again.
 */

import { fstatSync, write } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { writeOut } from './exit.ts'

export interface LogOutput {
  readonly isFile: boolean
  write(text: string): void
  /** Resolves when all is written, or dropped, or after some seconds. */
  flush(): Promise<void>
}

const STDOUT = 1
const NEWLINE = 10
const MAX_UNREAD_BYTES = 4 * 2 ** 20
const FLUSH_MS = 3_000
/** What a worker that is killed had to say in its last moment is lost. */
const GATHER_MS = 10

export function openLogOutput(): LogOutput {
  return isFile() ? new FileOutput() : { isFile: false, write: writeBounded, flush: async () => {} }
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
  readonly isFile = true
  #waiting: string[] = []
  #waitingLength = 0
  #writing: Promise<void> | undefined
  /** the last line in the file has no end */
  #isTorn = false
  /** from the first flush on, each line is written at once */
  #isHurried = false
  #hurry: () => void = () => undefined

  write(text: string): void {
    if (this.#waitingLength > MAX_UNREAD_BYTES) return
    this.#waiting.push(text)
    this.#waitingLength += text.length
    this.#writing ??= this.#writeAll().finally(() => {
      this.#writing = undefined
    })
  }

  async flush(): Promise<void> {
    this.#isHurried = true
    this.#hurry()
    const patience = new AbortController()
    await Promise.race([this.#writing, sleep(FLUSH_MS, undefined, { signal: patience.signal }).catch(() => undefined)])
    patience.abort()
  }

  /** One write for the lines of several jobs: each is a trip to the thread pool. */
  #gather(): Promise<void> {
    if (this.#isHurried) return Promise.resolve()
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, GATHER_MS)
      this.#hurry = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }

  async #writeAll(): Promise<void> {
    while (this.#waiting.length > 0) {
      await this.#gather()
      const bytes = Buffer.from(`${this.#isTorn ? '\n' : ''}${this.#waiting.join('')}`)
      this.#waiting = []
      this.#waitingLength = 0
      const written = await writeWhole(bytes)
      if (written > 0) this.#isTorn = bytes[written - 1] !== NEWLINE
    }
  }
}

/** @returns how many bytes the disk took; the rest is lost */
async function writeWhole(bytes: Buffer): Promise<number> {
  let done = 0
  while (done < bytes.length) {
    const written = await new Promise<number>((resolve) => {
      write(STDOUT, bytes, done, bytes.length - done, null, (error, count) => resolve(error === null ? count : 0))
    })
    if (written === 0) break
    done += written
  }
  return done
}
