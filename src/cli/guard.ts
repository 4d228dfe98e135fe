/**
 * What the guard of a worker becomes when the worker is dead (run/guard.ts). Not for people: it ends the runs of a dead
 * worker, and refuses when the worker is alive or the folder is not that worker's.
 *
 *     node guard.js <folder of the worker> <worker id> <presence of the worker> <folder of its control groups, or nothing>
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { complain, EXIT } from './exit.ts'

const NAME = 'qworker-guard'
/** The pipe of a dying process may be closed before the process is dead. */
const DYING_MS = 5000

async function main([path = '', id = '', presence = '', cgroupBase = '']: readonly string[]): Promise<number> {
  // Node heeds again what the shell ignored: before the rest is loaded, that is undone.
  const { IGNORED_SIGNALS } = await import('../run/guard.ts')
  for (const signal of IGNORED_SIGNALS) process.on(signal, () => undefined)
  const { endForDeadWorker } = await import('../run/workshop.ts')
  const { isPresent } = await import('../run/presence.ts')
  const began = performance.now()
  while (isPresent(presence) === 'alive' && performance.now() - began < DYING_MS) await sleep(5)
  const receipt = await endForDeadWorker(path, id, presence, cgroupBase)
  if (receipt !== undefined) return receipt.survivors.length === 0 ? EXIT.ok : EXIT.failed
  complain(NAME, `refused: expected the folder of a worker that is dead, its id and its presence; it is ${path}`)
  return EXIT.usage
}

main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (error: unknown) => {
    complain(NAME, error instanceof Error ? (error.stack ?? error.message) : String(error))
    process.exit(EXIT.software)
  },
)
