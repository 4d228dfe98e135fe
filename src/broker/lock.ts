/**
 * One broker per journal folder, by a Unix socket in it that the broker listens on. The kernel closes it with the
 * process however that ends: who can connect knows that a broker lives, who is refused knows that none does. No process
 * number is asked for, which may be another's by now, or one of another container.
 */

import { closeSync, linkSync, openSync, renameSync, unlinkSync } from 'node:fs'
import { createServer, connect as openSocket, type Server } from 'node:net'
import { join } from 'node:path'
import { BrokerError } from './broker-error.ts'

const NAME = 'lock'
const ATTEMPTS = 5

/** @returns what gives the folder free. @throws BrokerError `locked` when another broker has it */
export async function lockFolder(folder: string): Promise<() => Promise<void>> {
  let unlock: (() => Promise<void>) | undefined
  try {
    unlock = await takeLock(folder, NAME)
  } catch (cause) {
    throw new BrokerError(
      'journal',
      `the journal folder ${folder} cannot be locked (${(cause as Error).message})`,
      cause,
    )
  }
  if (unlock !== undefined) return unlock
  throw new BrokerError('locked', `another broker keeps its journal in ${folder}: stop it, or choose another folder`)
}

/**
 * A lock of that name in the folder, for any purpose.
 * @param name of at most 60 bytes: it is part of the path of a socket
 * @returns what gives it free; undefined when a living process has it. @throws what the file system throws
 */
export async function takeLock(folder: string, name: string): Promise<(() => Promise<void>) | undefined> {
  // The path of a socket may have about 100 bytes; through the descriptor of its folder it is short.
  const descriptor = openSync(folder, 'r')
  const place = process.platform === 'linux' ? `/proc/self/fd/${descriptor}` : folder
  const path = join(place, name)
  try {
    for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
      const server = await listen(path)
      if (server !== undefined) return () => unlock(server, descriptor)
      if (await answers(path)) break
      await removeDead(path, join(place, `${name}.${process.pid}.${attempt}`))
    }
  } catch (error) {
    closeSync(descriptor)
    throw error
  }
  closeSync(descriptor)
  return undefined
}

/** Whether a broker that lives keeps its journal there; nothing is changed. @throws what the file system throws */
export async function isFolderLocked(folder: string): Promise<boolean> {
  let descriptor: number
  try {
    descriptor = openSync(folder, 'r')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
    throw error
  }
  try {
    return await answers(join(process.platform === 'linux' ? `/proc/self/fd/${descriptor}` : folder, NAME))
  } finally {
    closeSync(descriptor)
  }
}

async function unlock(server: Server, descriptor: number): Promise<void> {
  await new Promise((resolve) => server.close(resolve))
  closeSync(descriptor)
}

/** Undefined when the name is taken. */
function listen(path: string): Promise<Server | undefined> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy())
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') resolve(undefined)
      else reject(error)
    })
    server.listen(path, () => resolve(server.unref()))
  })
}

function answers(path: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const socket = openSocket(path, () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ECONNREFUSED' || error.code === 'ENOENT') resolve(false)
      else if (error.code === 'EAGAIN') resolve(true)
      else reject(error)
    })
  })
}

/** Two that find the same dead lock: the second might take the new lock of the first. So it looks at what it took. */
async function removeDead(path: string, aside: string): Promise<void> {
  try {
    renameSync(path, aside)
    if (await answers(aside)) linkSync(aside, path)
    unlinkSync(aside)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code !== 'ENOENT' && code !== 'EEXIST') throw error
  }
}
