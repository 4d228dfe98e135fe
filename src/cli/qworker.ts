/** `qworker`: the worker itself, or what is done around it. */

import { isTubeName } from '../queue/queue.ts'
import { StoreError } from '../store/store.ts'
import { TrackerError } from '../tracker/tracker.ts'
import { parseCommandLine, refuse, runSubcommand } from './command.ts'
import { heedEarlySignals } from './early-signals.ts'
import { complain, EXIT, endProgram, endWithError, ignoreBrokenPipe, isUnloadable } from './exit.ts'
import { makeProgram, WORKER as NAME } from './qworker-flags.ts'
import type { WorkerFlags } from './settings.ts'
import { SUBCOMMANDS } from './subcommands.ts'

async function main(): Promise<void> {
  ignoreBrokenPipe()
  const args = process.argv.slice(2)
  const code = await runSubcommand(NAME, args, SUBCOMMANDS)
  if (code !== undefined) return endProgram(NAME, code)
  const early = heedEarlySignals()
  const flags = await parseCommandLine<WorkerFlags>(makeProgram(), args, SUBCOMMANDS)
  checkFlags(flags)
  const { runWorker } = await import('./worker.ts')
  await runWorker(flags, early)
}

function checkFlags(flags: WorkerFlags): void {
  const slots = flags.jobs === undefined || /^\d{1,3}$/.test(flags.jobs) ? Number(flags.jobs ?? 1) : 0
  if (flags.jobs !== 'auto' && (slots < 1 || slots > 256)) {
    refuse(NAME, `-j takes a number of jobs from 1 to 256, or auto; it is ${JSON.stringify(flags.jobs)}`)
  }
  const badTube = flags.tube?.find((name) => !isTubeName(name))
  if (badTube !== undefined) {
    const expected = '1 to 200 of A-Z a-z 0-9 - + / ; . $ _ ( ), not beginning with -'
    refuse(NAME, `--tube takes ${expected}; it is ${JSON.stringify(badTube)}`)
  }
  if (flags.once && flags.jobs !== undefined && flags.jobs !== '1') {
    refuse(NAME, '--once takes one job, -j several at a time: give one of them')
  }
}

await main().catch((error: unknown) => {
  if (isUnloadable(error)) throw error
  // Found when nothing is begun yet: the message has the remedy.
  if (error instanceof TrackerError || error instanceof StoreError) endWithError(NAME, EXIT.cantCreate, error.message)
  complain(NAME, error instanceof Error ? (error.stack ?? error.message) : String(error))
  process.exit(EXIT.software)
})
