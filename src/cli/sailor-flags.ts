/** What `drunken-sailor` may be told. */

import { type Command, InvalidArgumentError, Option } from 'commander'
import { SAMPLE_SEED } from '../sailor/dice.ts'
import { MAX_MEGABYTES } from '../sailor/mischief.ts'
import { isMegabytes, isSeconds, isSeed } from '../sailor/voyage.ts'
import { makeCommand } from './command.ts'
import { SAILOR_SUBCOMMANDS } from './subcommands.ts'

export const SAILOR = 'drunken-sailor'

export type SailorFlags = {
  sleep?: number
  verbose?: boolean
  seed?: number
  attempt?: number
  outcome?: string
  wild?: boolean
  megabytes?: number
  warm?: boolean
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
export const parseAttempt = makeNumberParser(isAttempt, 'a whole number from 1 on')

const DETAILS = `
The four usual outcomes are normal, slow, faulty and infinite-loop, each as likely as the others.
With --seed ${SAMPLE_SEED} the first three attempts are infinite-loop, faulty, normal.
Run as a job (QWORKER_UUID is set) it takes seed, outcome, wild, sleep and megabytes from ./input.json too.
The payload wins. Exits: as --list tells; 64 bad flags, 65 bad payload, 255 no -s or an unknown outcome.

Examples:
  drunken-sailor -s 1 -v --outcome normal
  drunken-sailor -s 1 -v --seed ${SAMPLE_SEED} --attempt 2
  drunken-sailor --list --json
  qproducer -a drunken_sailor -p '{"outcome": "ignores-sigterm"}' --ttr 3`

export function makeProgram(): Command {
  return makeCommand(SAILOR, SAILOR_SUBCOMMANDS)
    .description('An algorithm that misbehaves, to try out how a worker copes with it.')
    .option(
      '-s, --sleep <seconds>',
      'how long normal execution takes',
      makeNumberParser(isSeconds, 'seconds, 0 or more'),
    )
    .option('-v, --verbose', 'tell which outcome was rolled')
    .option('--seed <n>', 'same seed, same voyage', makeNumberParser(isSeed, 'a whole number from 0 on'))
    .option('--attempt <k>', 'which throw of the seed (default: environment QWORKER_ATTEMPT, else 1)', parseAttempt)
    .option('--outcome <outcome>', 'force this outcome, one of --list')
    .option('--wild', 'roll among all outcomes of --list, not only the first four')
    .option(
      '--megabytes <n>',
      'size for eats-memory (default 512) and huge-file (default 256)',
      makeNumberParser(isMegabytes, `a whole number from 1 to ${MAX_MEGABYTES}`),
    )
    .option('--warm', 'serve many jobs, one for each line of stdin, as a warm algorithm; with --list: its outcomes')
    .option('--list', 'print all outcomes and how each ends')
    .option('--json', 'with --list: as JSON')
    .addOption(new Option('--journal <dir>', 'where the sailors of a torture note themselves').hideHelp())
    .addHelpText('after', DETAILS)
}
