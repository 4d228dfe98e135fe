/** What all our command lines have in common: help, version, subcommands, and how a wrong one is refused. */

import type { Command, Option } from 'commander'
import { didYouMean, findNear } from '../report/suggestion.ts'
import { COLOR_WORDS } from './color.ts'
import { EXIT, endProgram, endWithError } from './exit.ts'
import type { OptionRow } from './option-table.ts'
import { readVersion } from './version.ts'

/** Not before somebody needs it: see option-table.ts. Only the first call takes time. */
function loadCommander(): typeof import('commander') {
  return process.getBuiltinModule('node:module').createRequire(import.meta.url)('commander')
}

/** What is loaded only when it is called, or when completions are made. */
export interface SubcommandModule {
  /** named `<program> <subcommand>` */
  makeProgram(): Command
  /** @returns the exit code */
  run(args: readonly string[]): Promise<number>
}

export interface Subcommand {
  /** as in its usage: `DIR`, `bash|zsh|fish`, or nothing */
  readonly operands: string
  readonly summary: string
  readonly load: () => Promise<SubcommandModule>
}

export type Subcommands = Readonly<Record<string, Subcommand>>

/** A command line without options of its own; what is wrong with it is told by `parseCommandLine`. */
export function makeCommand(name: string, subcommands: Subcommands = {}): Command {
  const { Command } = loadCommander()
  const command = new Command(name)
    .version(readVersion(), '-V, --version', 'print the version and the commit it was built from')
    .helpOption('-h, --help', 'print this')
    .allowExcessArguments(false)
    .showSuggestionAfterError(false)
    .configureOutput({ outputError: () => undefined })
    .exitOverride()
  if (Object.keys(subcommands).length === 0) return command
  return command
    .usage(`[options]\n       ${name} COMMAND ...`)
    .addHelpText('after', makeSubcommandsText(name, subcommands))
}

/** For programs that call `decideColors`; without a word it is `always`. */
export function makeColorOption(): Option {
  const { Option } = loadCommander()
  return new Option('--color [when]', 'colours; auto: on a terminal, unless NO_COLOR is set')
    .choices(COLOR_WORDS)
    .preset('always')
}

export function addOptions(command: Command, table: readonly OptionRow[]): Command {
  for (const { flags, description, isList } of table) {
    if (isList) command.option(flags, description, (value: string, values: string[] = []) => [...values, value])
    else command.option(flags, description)
  }
  return command
}

function makeSubcommandsText(name: string, subcommands: Subcommands): string {
  const rows = Object.entries(subcommands).map(([word, { operands, summary }]) => [`${word} ${operands}`, summary])
  rows.push(['help [COMMAND]', `print this, or the help of a command (the same as ${name} COMMAND --help)`])
  const width = Math.max(...rows.map(([usage = '']) => usage.length))
  return `\nCommands:\n${rows.map(([usage = '', summary]) => `  ${usage.padEnd(width)}  ${summary}`).join('\n')}`
}

/**
 * Runs the subcommand that stands first.
 * @returns its exit code; undefined when there is none, and the rest is the program's own
 */
export async function runSubcommand(
  program: string,
  args: readonly string[],
  subcommands: Subcommands,
): Promise<number | undefined> {
  const [first, ...rest] = args[0] === 'help' && args[1] !== undefined ? [args[1], '--help'] : args
  if (first === undefined || first.startsWith('-') || first === 'help') return undefined
  const subcommand = Object.hasOwn(subcommands, first) ? subcommands[first] : undefined
  if (subcommand === undefined) return refuse(program, describeUnknownCommand(first, subcommands))
  return (await subcommand.load()).run(rest)
}

function describeUnknownCommand(word: string, subcommands: Subcommands): string {
  const known = [...Object.keys(subcommands), 'help']
  return `unknown command ${JSON.stringify(word)}${didYouMean(word, known) || `; there are ${known.join(', ')}`}`
}

/** @returns the options; help, version and what is wrong end the program */
export async function parseCommandLine<Flags extends object>(
  command: Command,
  args: readonly string[],
  subcommands: Subcommands = {},
): Promise<Flags> {
  try {
    // `help` is a word of the programs that have subcommands.
    const isHelp = args[0] === 'help' && Object.keys(subcommands).length > 0
    return command.parse(isHelp ? ['--help'] : args, { from: 'user' }).opts<Flags>()
  } catch (error) {
    if (!(error instanceof loadCommander().CommanderError)) throw error
    if (error.exitCode === 0) return endProgram(command.name(), EXIT.ok)
    return refuse(command.name(), describeFault(command, args, error, subcommands))
  }
}

/** Ends the program as one that was called in a wrong way. */
export function refuse(program: string, message: string): never {
  return endWithError(program, EXIT.usage, `${message}\ntry ${program} --help`)
}

function describeFault(
  command: Command,
  args: readonly string[],
  error: { code: string; message: string },
  subcommands: Subcommands,
): string {
  if (error.code === 'commander.unknownOption') {
    const [flag = ''] = command.parseOptions([...args]).unknown
    return `unknown option ${JSON.stringify(flag)}${suggestOption(command, flag)}`
  }
  if (error.code === 'commander.excessArguments') {
    const misplaced = command.args.find((word) => Object.hasOwn(subcommands, word))
    if (misplaced !== undefined) return `a command stands before all options: ${command.name()} ${misplaced} ...`
    return `too many arguments: ${JSON.stringify(command.args[command.registeredArguments.length])} is not expected`
  }
  return error.message.replace(/^error: /, '')
}

function suggestOption(command: Command, flag: string): string {
  const word = flag.replace(/^-+/, '').replace(/=.*$/s, '')
  const known = command.createHelp().visibleOptions(command)
  const near = findNear(
    word,
    known.flatMap(({ long }) => long?.slice(2) ?? []),
  )
  return near.length === 0 ? '' : `; did you mean ${near.map((name) => `--${name}`).join(' or ')}?`
}
