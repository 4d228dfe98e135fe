/** A small disk for results that can be filled to the last byte, where this user may mount one. */

import { execFile } from 'node:child_process'
import { closeSync, mkdirSync, openSync, rmSync, writeSync } from 'node:fs'
import { freemem } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'

const run = promisify(execFile)
const MEBIBYTE = 2 ** 20

export interface SmallDisk {
  readonly path: string
  /** Leaves no room for a while. */
  fill(durationMs: number): Promise<void>
  calm(): void
  unmount(): Promise<void>
}

/** It is filled with memory: of what is free it takes at most this share. */
const MEMORY_SHARE = 1 / 4

/** Where there can be none, a reason; the folder is there all the same. */
export async function mountSmallDisk(path: string, megabytes: number): Promise<SmallDisk | string> {
  mkdirSync(path, { recursive: true })
  if (megabytes * MEBIBYTE > freemem() * MEMORY_SHARE) return `a disk of ${megabytes} MiB would take too much memory`
  try {
    await run('mount', ['-t', 'tmpfs', '-o', `size=${megabytes}m,mode=0755`, 'qworker-torture', path])
  } catch {
    return 'this user may not mount a small one'
  }
  const filler = join(path, '.filler')
  const calm = () => rmSync(filler, { force: true })
  return {
    path,
    fill: async (durationMs) => {
      fillUp(filler)
      await sleep(durationMs)
      calm()
    },
    calm,
    unmount: async () => {
      // Whoever still has a file open there must not keep the disk in the tree.
      await run('umount', [path]).catch(() => run('umount', ['-l', path]))
    },
  }
}

function fillUp(path: string): void {
  const fd = openSync(path, 'w')
  try {
    for (let size = MEBIBYTE; size >= 512; ) {
      try {
        writeSync(fd, Buffer.alloc(size))
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
        size /= 2
      }
    }
  } finally {
    closeSync(fd)
  }
}
