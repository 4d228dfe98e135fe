/** `qworker completion`: what a shell needs to complete our command lines, made from their definitions. */

import { Argument, type Command, Option } from 'commander'
import { listMischiefs } from '../sailor/mischief.ts'
import { makeCommand, parseCommandLine, refuse, type Subcommands } from './command.ts'
import { type CompletedLine, makeBashScript, makeFishScript, makeZshScript, type Value } from './completion-scripts.ts'
import { EXIT, writeOut } from './exit.ts'
import { SAILOR_SUBCOMMANDS, SUBCOMMANDS } from './subcommands.ts'

const NAME = 'qworker completion'

const SCRIPTS = { bash: makeBashScript, zsh: makeZshScript, fish: makeFishScript } as const
const SHELLS = Object.keys(SCRIPTS)

interface Flags {
  readonly list?: 'algorithms'
  readonly config?: string
}

export function makeProgram(): Command {
  return makeCommand(NAME)
    .description('Prints what a shell needs to complete the command lines of qworker, qproducer and drunken-sailor.')
    .addArgument(new Argument('[shell]', 'for which shell').choices(SHELLS))
    .addOption(new Option('--list <what>', 'what the scripts ask for').choices(['algorithms']).hideHelp())
    .addOption(new Option('-c, --config <file>', 'rc file whose ALGORITHM_DIRS are listed').hideHelp())
    .addHelpText(
      'after',
      `
Names of algorithms are looked up when they are completed: the folders of ALGORITHM_DIRS, of the rc file that the
line names with -c.

Examples:
  eval "$(qworker completion bash)"   # in ~/.bashrc
  eval "$(qworker completion zsh)"    # in ~/.zshrc, below compinit
  qworker completion fish | source    # in ~/.config/fish/config.fish`,
    )
}

/** @returns the exit code */
export async function run(args: readonly string[]): Promise<number> {
  const program = makeProgram()
  const { list, config } = await parseCommandLine<Flags>(program, args)
  if (list !== undefined) {
    const { listAlgorithmNames } = await import('./algorithm-names.ts')
    const names = await listAlgorithmNames({ file: config })
    await writeOut(names.map((name) => `${name}\n`).join(''))
    return EXIT.ok
  }
  const shell = program.args[0] as keyof typeof SCRIPTS | undefined
  if (shell === undefined) return refuse(NAME, `name a shell: ${SHELLS.join(', ')}`)
  await writeOut(SCRIPTS[shell](await describeLines()))
  return EXIT.ok
}

/** Every command line of ours, each program before its subcommands. */
export async function describeLines(): Promise<CompletedLine[]> {
  const { makeProgram: makeWorker } = await import('./qworker-flags.ts')
  const { makeProgram: makeProducer } = await import('./qproducer-flags.ts')
  const { makeProgram: makeSailor } = await import('./sailor-flags.ts')
  return [
    ...(await describeFamily(makeWorker(), SUBCOMMANDS)),
    describeLine(makeProducer(), {}),
    ...(await describeFamily(makeSailor(), SAILOR_SUBCOMMANDS)),
  ]
}

async function describeFamily(program: Command, subcommands: Subcommands): Promise<CompletedLine[]> {
  const words = Object.keys(subcommands)
  const lines = [describeLine(program, subcommands)]
  for (const word of words) {
    const { makeProgram: make } = (await subcommands[word]?.load()) ?? {}
    if (make !== undefined) lines.push(describeLine(make(), {}))
  }
  const help = { name: `${program.name()} help`, options: [], operands: [{ kind: 'words', words } as const] }
  return [...lines, { ...help, subcommands: [] }]
}

function describeLine(command: Command, subcommands: Subcommands): CompletedLine {
  const help = command.createHelp()
  const words = Object.entries(subcommands).map(([word, { summary }]) => ({ word, summary }))
  return {
    name: command.name(),
    options: help.visibleOptions(command).map((option) => ({
      flags: [option.short, option.long].filter((flag) => flag !== undefined),
      summary: option.description,
      value: option.required || option.optional ? describeValue(option) : undefined,
      isOptional: option.optional,
    })),
    operands: command.registeredArguments.map((argument) => describeValue(argument)),
    subcommands: words.length === 0 ? [] : [...words, { word: 'help', summary: 'print help' }],
  }
}

/** What may stand there is told by its choices, else by the word that holds its place: `<file>` is a file. */
function describeValue(holder: Option | Argument): Value {
  if (holder.argChoices !== undefined) return { kind: 'words', words: holder.argChoices }
  const name = holder instanceof Option ? (/[<[]([^>\]]+)[>\]]/.exec(holder.flags)?.[1] ?? '') : holder.name()
  switch (name) {
    case 'file':
    case 'payload':
      return { kind: name }
    case 'dir':
      return { kind: 'directory' }
    case 'type':
      return { kind: 'algorithm' }
    case 'outcome':
      return { kind: 'words', words: listMischiefs(true) }
    default:
      return { kind: 'other', name }
  }
}
