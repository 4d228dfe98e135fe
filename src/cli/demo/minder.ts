/**
 * Minds one program of the demo: it runs for as long as the demo holds the channel between them. However the demo ends,
 * its programs end after it, in order, and its folder is removed. Not for people: it is forked with the arguments
 *
 *     <folder of the demo, or nothing> <program> [argument ...]
 *
 *     a message, or the channel closes -> TERM, later KILL -> program ends
 *     program ends, by itself too -> what a killed worker left running is ended -> folder removed
 *
 * It tells the number of the program, should it be killed itself. The exit code is the program's, or 128 + its signal.
 * The minder is in a session of its own and heeds no signal.
 */

import { spawn } from 'node:child_process'
import { rm } from 'node:fs/promises'
import { constants } from 'node:os'
import { join } from 'node:path'
import { complain, EXIT, SIGNAL_BASE } from '../exit.ts'
import { RESULTS_FOLDER } from './room.ts'

const NAME = 'minder'
/** A worker ends its runs within a few seconds. */
const KILL_MS = 15_000

async function main([folder = '', program = '', ...args]: readonly string[]): Promise<number> {
  for (const signal of ['SIGHUP', 'SIGINT', 'SIGTERM', 'SIGQUIT', 'SIGTSTP', 'SIGUSR1', 'SIGUSR2'] as const) {
    process.on(signal, () => undefined)
  }
  const code = await mind(program, args)
  if (folder !== '') await removeRoom(folder)
  return code
}

function mind(program: string, args: readonly string[]): Promise<number> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'inherit', 'inherit'] })
    let patience: NodeJS.Timeout | undefined
    const end = () => {
      if (patience !== undefined) return
      child.kill('SIGTERM')
      patience = setTimeout(() => child.kill('SIGKILL'), KILL_MS)
    }
    process.once('message', end).once('disconnect', end)
    if (process.connected) process.send?.(child.pid, () => undefined)
    else end()
    child.once('error', (error) => {
      complain(NAME, `${program} cannot be started: ${error.message}`)
      resolve(EXIT.software)
    })
    child.once('exit', (code, signal) => {
      clearTimeout(patience)
      resolve(code ?? SIGNAL_BASE + constants.signals[signal ?? 'SIGKILL'])
    })
  })
}

/** What a worker that was killed left running is ended first: by its folder it is found. */
async function removeRoom(folder: string): Promise<void> {
  const [{ WORK_FOLDER }, { endWorkshop, findDeadWorkshops }] = await Promise.all([
    import('../../run/workdir.ts'),
    import('../../run/workshop.ts'),
  ])
  for (const dead of await findDeadWorkshops(join(folder, RESULTS_FOLDER, WORK_FOLDER))) await endWorkshop(dead)
  await rm(folder, { recursive: true, force: true, maxRetries: 5 })
}

main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (error: unknown) => {
    complain(NAME, error instanceof Error ? (error.stack ?? error.message) : String(error))
    process.exit(EXIT.software)
  },
)
