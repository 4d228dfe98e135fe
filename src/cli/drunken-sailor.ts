import { readFile } from 'node:fs/promises'
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander'
import { jobEnvironment } from '../config.ts'
import { didYouMean } from '../report/suggestion.ts'
import { SAMPLE_SEED } from '../sailor/dice.ts'
import { enterJournal } from '../sailor/journal.ts'
import { getMischief, isMischiefName, listMischiefs, MAX_MEGABYTES, makeEndText, writeAll } from '../sailor/mischief.ts'
import { chooseMischief, isMegabytes, isSeconds, isSeed, type Orders, readOrders, sail } from '../sailor/voyage.ts'
import { EXIT } from './exit.ts'
import { VERSION } from './version.ts'

/** What the ancestor exits with; what a mischief exits with stands in its table. */
const ANCESTOR_EXIT = 255

type Flags = {
  sleep?: number
  verbose?: boolean
  seed?: number
  attempt?: number
  outcome?: string
  wild?: boolean
  megabytes?: number
  list?: boolean
  json?: boolean
  journal?: string
}

const makeNumberParser = (holds: (value: number) => boolean, expected: string) => (text: string) => {
  // The pattern refuses what Number() reads but a person would not write: '', ' 3', '0x10', '1e3'.
  if (!/^\d+(\.\d+)?$/.test(text) || !holds(Number(text))) throw new InvalidArgumentError(`Expected ${expected}.`)
  return Number(text)
}

const isAttempt = (value: unknown) => isSeed(value) && value >= 1
const parseAttempt = makeNumberParser(isAttempt, 'a whole number from 1 on')

function makeProgram(): Command {
  return new Command('drunken-sailor')
    .description('An algorithm that misbehaves, to try out how a worker copes with it.')
    .option(
      '-s, --sleep <seconds>',
      'how long normal execution takes',
      makeNumberParser(isSeconds, 'seconds, 0 or more'),
    )
    .option('-v, --verbose', 'tell which outcome was rolled')
    .option('--seed <n>', 'same seed, same voyage', makeNumberParser(isSeed, 'a whole number from 0 on'))
    .option('--attempt <k>', 'which throw of the seed (default: environment QWORKER_ATTEMPT, else 1)', parseAttempt)
    .option('--outcome <name>', 'force this outcome')
    .option('--wild', 'roll among all outcomes of --list, not only the first four')
    .option(
      '--megabytes <n>',
      'size for eats-memory (default 512) and huge-file (default 256)',
      makeNumberParser(isMegabytes, `a whole number from 1 to ${MAX_MEGABYTES}`),
    )
    .option('--list', 'print all outcomes and how each ends')
    .option('--json', 'with --list: as JSON')
    .addOption(new Option('--journal <dir>', 'where the sailors of a torture note themselves').hideHelp())
    .addHelpText(
      'after',
      [
        '',
        'The four usual outcomes are normal, slow, faulty and infinite-loop, each as likely as the others.',
        `With --seed ${SAMPLE_SEED} the first three attempts are infinite-loop, faulty, normal.`,
        'Run as a job (QWORKER_UUID is set) it takes seed, outcome, wild, sleep and megabytes from ./input.json too.',
        'The payload wins. Exits: as --list tells; 64 bad flags, 65 bad payload, 255 no -s or an unknown outcome.',
        '',
        'drunken-sailor torture breaks a whole deployment and counts what is lost: drunken-sailor torture --help',
      ].join('\n'),
    )
    .version(VERSION, '-V, --version')
    .allowExcessArguments(false)
    .configureOutput({
      outputError: (text, write) =>
        write(`drunken-sailor: ${text.replace(/^error: /, '').trimEnd()}\ntry drunken-sailor --help\n`),
    })
    .exitOverride()
}

async function main(): Promise<number> {
  if (process.argv[2] === 'torture') return (await import('./torture.ts')).runTorture(process.argv.slice(3))
  const flags = makeProgram().parse().opts<Flags>()
  if (flags.list) return printList(flags.json ?? false)
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

async function printList(json: boolean): Promise<number> {
  const rows = listMischiefs(true).map((name) => ({ name, ...getMischief(name) }))
  const width = Math.max(...rows.map((row) => row.name.length))
  const text = json
    ? JSON.stringify(
        rows.map(({ name, description, end, leavesProcess = false }) => ({ name, description, end, leavesProcess })),
        null,
        2,
      )
    : rows.map((row) => `${row.name.padEnd(width)}  ${row.description}; ${makeEndText(row)}`).join('\n')
  await writeAll(process.stdout, `${text}\n`)
  return 0
}

async function refuse(exitCode: number, complaint: string): Promise<number> {
  await writeAll(process.stderr, `${complaint}\n`)
  return exitCode
}

async function explainFailure(error: unknown): Promise<number> {
  // Commander has already printed its help or its complaint.
  if (error instanceof InvalidArgumentError) return refuse(EXIT.usage, `error: QWORKER_ATTEMPT: ${error.message}`)
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT.usage
  const { code, message } = error as NodeJS.ErrnoException
  return refuse(code === undefined ? EXIT.software : EXIT.ioError, `drunken-sailor: ${message}`)
}

// The reader of a flood may go away: there is nobody left to tell.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => process.exit(EXIT.ioError))
process.exit(await main().catch(explainFailure))
