/** A process that keeps a tracker from being written, as one does that is stopped in the middle of a transaction. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { PROJECT } from './installation.ts'

const PROGRAM = `const db = new (require(process.argv[1]))(process.argv[2])
db.exec('PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE')
console.log('holds')
setInterval(() => {}, 1000)`

/** @returns a function that lets it be written again */
export async function holdTracker(results: string): Promise<() => Promise<void>> {
  const args = ['-e', PROGRAM, join(PROJECT, 'node_modules/libsql'), join(results, '.state', 'tracker.db')]
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  onTestFinished(() => void child.kill('SIGKILL'))
  const exited = once(child, 'exit')
  await Promise.race([
    once(child.stdout, 'data'),
    exited.then(([code]) => Promise.reject(new Error(`the transaction ended with ${code}`))),
  ])
  return async () => {
    child.kill('SIGKILL')
    await exited
  }
}
