/** `drunken-sailor`: one voyage, or what is done with many. */

import { readFile } from 'node:fs/promises'
import { InvalidArgumentError } from 'commander'
import { jobEnvironment } from '../config.ts'
import { didYouMean } from '../report/suggestion.ts'
import { enterJournal } from '../sailor/journal.ts'
import { getMischief, isMischiefName, listMischiefs, makeEndText, writeAll } from '../sailor/mischief.ts'
import { chooseMischief, type Orders, readOrders, sail } from '../sailor/voyage.ts'
import { getWarmMischief, listWarmMischiefs, serveJobs } from '../sailor/warm.ts'
import { parseCommandLine, runSubcommand } from './command.ts'
import { EXIT, endProgram, ignoreBrokenPipe, writeOut } from './exit.ts'
import { makeProgram, parseAttempt, SAILOR, type SailorFlags } from './sailor-flags.ts'
import { SAILOR_SUBCOMMANDS } from './subcommands.ts'

/** What the ancestor exits with; what a mischief exits with stands in its table. */
const ANCESTOR_EXIT = 255

async function main(): Promise<never> {
  ignoreBrokenPipe()
  const args = process.argv.slice(2)
  const code = await runSubcommand(SAILOR, args, SAILOR_SUBCOMMANDS)
  if (code !== undefined) return endProgram(SAILOR, code)
  const flags = await parseCommandLine<SailorFlags>(makeProgram(), args, SAILOR_SUBCOMMANDS)
  if (flags.list) return endProgram(SAILOR, await printList(flags.json ?? false, flags.warm ?? false))
  // The reader of a flood may go away: there is nobody left to tell.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => process.exit(EXIT.ioError))
  if (flags.warm) return process.exit(await serveJobs(flags.sleep ?? 0, flags.journal).catch(explainFailure))
  return process.exit(await embark(flags).catch(explainFailure))
}

async function embark(flags: SailorFlags): Promise<number> {
  const { outcome } = flags
  if (outcome !== undefined && !isMischiefName(outcome)) {
    return refuse(ANCESTOR_EXIT, `Unknown dice value! All man abort ship!\n${makeUnknownOutcomeText(outcome)}`)
  }

  let payload: Orders = {}
  const job = jobEnvironment()
  if (job.uuid !== undefined) {
    if (flags.journal !== undefined) enterJournal(flags.journal, job.uuid, job.attempt ?? '1')
    const read = await readJob()
    if ('exitCode' in read) return refuse(read.exitCode, read.complaint)
    payload = read.orders
  }
  // The manifest's flags are what the installation suggests; the payload is what this job asks for.
  const sleepSeconds = payload.sleep ?? flags.sleep
  if (sleepSeconds === undefined)
    return refuse(
      ANCESTOR_EXIT,
      'Please provide a sleep time value...\nGive -s SECONDS; drunken-sailor --help tells more',
    )

  const seed = payload.seed ?? flags.seed ?? Math.floor(Math.random() * 2 ** 32)
  const name = chooseMischief(
    { outcome: payload.outcome ?? outcome, wild: payload.wild ?? flags.wild, seed },
    flags.attempt ?? parseAttempt(job.attempt ?? '1'),
  )
  return sail(name, { sleepSeconds, megabytes: payload.megabytes ?? flags.megabytes }, flags.verbose ?? false)
}

async function readJob(): Promise<{ orders: Orders } | { exitCode: number; complaint: string }> {
  let text: string
  try {
    text = await readFile('input.json', 'utf8')
  } catch (error) {
    const complaint = `drunken-sailor: QWORKER_UUID is set, so input.json is read, but: ${(error as Error).message}`
    return { exitCode: EXIT.noInput, complaint }
  }
  const read = readOrders(text)
  if (read.kind === 'orders') return { orders: read.orders }
  const { key, expected, value } = read
  const reason =
    key === 'outcome' && typeof value === 'string'
      ? makeUnknownOutcomeText(value)
      : `"${key}" must be ${expected}, not ${makeValueText(value)}`
  return { exitCode: EXIT.data, complaint: `drunken-sailor: bad input.json: ${reason}` }
}

/** Never the inside of a list or an object: a hostile one may be nested too deep to print. */
function makeValueText(value: unknown): string {
  if (Array.isArray(value)) return 'a list'
  return typeof value === 'object' && value !== null ? 'an object' : JSON.stringify(value).slice(0, 80)
}

function makeUnknownOutcomeText(outcome: string): string {
  const hint = didYouMean(outcome, listMischiefs(true)) || '.'
  return `Unknown outcome ${JSON.stringify(outcome.slice(0, 60))}${hint} drunken-sailor --list prints all.`
}

async function printList(json: boolean, warm: boolean): Promise<number> {
  if (warm) return printWarmList(json)
  const rows = listMischiefs(true).map((name) => ({ name, ...getMischief(name) }))
  const width = Math.max(...rows.map((row) => row.name.length))
  const text = json
    ? JSON.stringify(
        rows.map(({ name, description, end, leavesProcess = false }) => ({ name, description, end, leavesProcess })),
        null,
        2,
      )
    : rows.map((row) => `${row.name.padEnd(width)}  ${row.description}; ${makeEndText(row)}`).join('\n')
  await writeOut(`${text}\n`)
  return EXIT.ok
}

async function printWarmList(json: boolean): Promise<number> {
  const rows = listWarmMischiefs().map((name) => ({ name, ...getWarmMischief(name) }))
  const width = Math.max(...rows.map((row) => row.name.length))
  const text = json
    ? JSON.stringify(rows, ['name', 'description', 'end'], 2)
    : rows.map(({ name, description, end }) => `${name.padEnd(width)}  ${description}; the process ${end}`).join('\n')
  await writeOut(`${text}\n`)
  return EXIT.ok
}

async function refuse(exitCode: number, complaint: string): Promise<number> {
  await writeAll(process.stderr, `${complaint}\n`)
  return exitCode
}

async function explainFailure(error: unknown): Promise<number> {
  if (error instanceof InvalidArgumentError) return refuse(EXIT.usage, `error: QWORKER_ATTEMPT: ${error.message}`)
  const { code, message } = error as NodeJS.ErrnoException
  return refuse(code === undefined ? EXIT.software : EXIT.ioError, `drunken-sailor: ${message}`)
}

await main()
