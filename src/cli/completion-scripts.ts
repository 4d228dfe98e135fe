/**
 * Completion scripts for bash (3.2 on), zsh and fish. Each holds all options and words of our command lines; only the
 * names of algorithms are asked for when they are needed, of the `qworker` that stands beside the program, or in PATH.
 */

import { quote } from './invocation.ts'

export type Value =
  | { readonly kind: 'words'; readonly words: readonly string[] }
  /** `payload`: a file behind an @ */
  | { readonly kind: 'file' | 'directory' | 'payload' | 'algorithm' }
  /** nothing that could be offered */
  | { readonly kind: 'other'; readonly name: string }

export interface CompletedOption {
  /** `-c`, `--config` */
  readonly flags: readonly string[]
  readonly summary: string
  /** undefined: it takes none */
  readonly value: Value | undefined
  /** the value may be left out */
  readonly isOptional: boolean
}

export interface CompletedLine {
  /** `qworker`, or `qworker check` */
  readonly name: string
  readonly options: readonly CompletedOption[]
  readonly operands: readonly Value[]
  readonly subcommands: readonly { readonly word: string; readonly summary: string }[]
}

const isProgram = ({ name }: CompletedLine) => !name.includes(' ')

function programsOf(lines: readonly CompletedLine[]): string[] {
  return lines.filter(isProgram).map(({ name }) => name)
}

const BASH_HEAD = `# bash completion for qworker and its kin; made by: qworker completion bash

# Algorithms of the rc file that the line names, as the qworker knows them that stands beside the program.
_qworker_algorithms() {
  local program=\${COMP_WORDS[0]} config= i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case \${COMP_WORDS[i]} in
      -c|--config) config=\${COMP_WORDS[i+1]}; [ "$config" = = ] && config=\${COMP_WORDS[i+2]} ;;
    esac
  done
  case $program in */*) program=\${program%/*}/qworker ;; *) program=qworker ;; esac
  case $program in "~/"*) program=$HOME/\${program#??} ;; esac
  case $config in "~/"*) config=$HOME/\${config#??} ;; esac
  "$program" completion --list algorithms \${config:+-c "$config"} 2>/dev/null
}

# $1: -f for files, -d for directories; $2: what is typed
_qworker_files() {
  local name typed=$2
  case $typed in "~/"*) typed=$HOME/\${typed#??} ;; esac
  while IFS= read -r name; do COMPREPLY+=("$name"); done < <(compgen "$1" -- "$typed")
  compopt -o filenames 2>/dev/null
}

_qworker_words() {
  local name
  while IFS= read -r name; do COMPREPLY+=("$name"); done < <(compgen -W "$1" -- "$2")
}

# $1: @FILE as it is typed; $2: what of it is kept before the name
_qworker_payload() {
  local name
  case $1 in
    @*) while IFS= read -r name; do COMPREPLY+=("$2$(printf %q "$name")"); done < <(compgen -f -- "\${1#@}") ;;
  esac
}

_qworker() {
  local word=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD-1]} line=\${COMP_WORDS[0]##*/} at=
  COMPREPLY=()
  # What is replaced is $2, which may begin later, or earlier, than the last word does.
  case $2 in @*) at=@ ;; esac
  # What breaks words is a word of its own: --config=FILE is three of them, and so is @FILE two.
  if [ "$word" = = ]; then word=; elif [ "$before" = = ]; then before=\${COMP_WORDS[COMP_CWORD-2]}; fi
  if [ "$before" = @ ]; then word=@$word before=\${COMP_WORDS[COMP_CWORD-2]}; fi
`

export function makeBashScript(lines: readonly CompletedLine[]): string {
  const families = lines.filter(({ subcommands }) => subcommands.length > 0)
  const subcommands = families.flatMap(({ name, subcommands: own }) => own.map(({ word }) => quote(`${name} ${word}`)))
  const values = lines.flatMap(({ name, options }) =>
    options.flatMap(({ flags, value, isOptional }) => {
      if (value === undefined) return []
      const patterns = flags.map((flag) => quote(`${name} ${flag}`)).join('|')
      const action = `${bashAction(value)}return`
      return [`    ${patterns}) ${isOptional ? `case $word in -*) ;; *) ${action} ;; esac` : action} ;;`]
    }),
  )
  const offers = lines.map(({ name, options, operands, subcommands: own }) => {
    const flags = options.flatMap((option) => option.flags).join(' ')
    const plain = own.length > 0 ? `[ "$COMP_CWORD" = 1 ] && ${bashWords(own.map(({ word }) => word))}` : ''
    const [operand] = operands
    const action = operand === undefined ? plain : bashAction(operand).replace(/; $/, '')
    const otherwise = action === '' ? `_qworker_words ${quote(flags)} "$word"` : action
    return `    ${quote(name)}) case $word in -*) _qworker_words ${quote(flags)} "$word" ;; *) ${otherwise} ;; esac ;;`
  })
  return `${BASH_HEAD}  [ "$COMP_CWORD" -gt 1 ] && case "$line \${COMP_WORDS[1]}" in
    ${subcommands.join('|')}) line="$line \${COMP_WORDS[1]}" ;;
  esac
  case "$line $before" in
${values.join('\n')}
  esac
  case $line in
${offers.join('\n')}
  esac
}
complete -F _qworker ${programsOf(lines).join(' ')}
`
}

function bashWords(words: readonly string[]): string {
  return `_qworker_words ${quote(words.join(' '))} "$word"`
}

function bashAction(value: Value): string {
  switch (value.kind) {
    case 'words':
      return `${bashWords(value.words)}; `
    case 'algorithm':
      return '_qworker_words "$(_qworker_algorithms)" "$word"; '
    case 'file':
      return '_qworker_files -f "$word"; '
    case 'directory':
      return '_qworker_files -d "$word"; '
    case 'payload':
      return '_qworker_payload "$word" "$at"; '
    case 'other':
      return ''
    default:
      return value satisfies never
  }
}

const ZSH_HEAD = `# zsh completion for qworker and its kin; made by: qworker completion zsh

# Algorithms of the rc file that the line names, as the qworker knows them that stands beside the program.
_qworker_algorithms() {
  local program=$_qworker_program config= i
  local -a names
  for ((i = 1; i < $#words; i++)); do
    case $words[i] in
      -c|--config) config=$words[i+1] ;;
      --config=*) config=\${words[i]#--config=} ;;
    esac
  done
  case $program in */*) program=\${program%/*}/qworker ;; *) program=qworker ;; esac
  program=\${program/#\\~\\//$HOME/}
  config=\${config/#\\~\\//$HOME/}
  names=(\${(f)"$($program completion --list algorithms \${config:+-c} \${config:+$config} 2>/dev/null)"})
  compadd -a names
}

_qworker_payload() {
  compset -P @ && _files
}
`

export function makeZshScript(lines: readonly CompletedLine[]): string {
  const cases = lines.map((line) => {
    const specs = [
      ...line.options.map(zshOption),
      ...line.operands.map((value, i) => quote(`${i + 1}:${zshValue(value)}`)),
      ...(line.subcommands.length > 0 ? [quote(`1:command:((${line.subcommands.map(zshSubcommand).join(' ')}))`)] : []),
    ]
    return `    ${quote(line.name)})\n      _arguments -s -S \\\n        ${specs.join(' \\\n        ')} ;;`
  })
  const subcommands = lines.flatMap(({ name, subcommands: own }) => own.map(({ word }) => quote(`${name} ${word}`)))
  const programs = programsOf(lines).join(' ')
  return `#compdef ${programs}
${ZSH_HEAD}
_qworker() {
  local _qworker_program=$words[1] line=\${words[1]:t}
  if ((CURRENT > 2)); then
    case "$line $words[2]" in
      ${subcommands.join('|')}) line="$line $words[2]"; shift words; ((CURRENT--)) ;;
    esac
  fi
  case $line in
${cases.join('\n')}
  esac
}

if [ "$funcstack[1]" = _qworker ]; then _qworker "$@"; else compdef _qworker ${programs}; fi
`
}

function zshOption({ flags, summary, value, isOptional }: CompletedOption): string {
  const text = `[${zshText(summary)}]`
  const taken = value === undefined ? '' : `${isOptional ? '::' : ':'}${zshValue(value)}`
  // --config FILE and --config=FILE
  const long = value === undefined ? '' : '='
  const words = flags.map((flag) => (flag.startsWith('--') ? `${flag}${long}` : flag))
  // What takes a value may be given more than once, or is corrected by a later one.
  const exclusion = value !== undefined ? '*' : `(${flags.join(' ')})`
  if (words.length === 1) return quote(`${exclusion}${words[0]}${text}${taken}`)
  return `${quote(exclusion)}{${words.join(',')}}${quote(`${text}${taken}`)}`
}

function zshSubcommand({ word, summary }: { word: string; summary: string }): string {
  return `${word}\\:"${zshText(summary).replaceAll('"', '')}"`
}

/** Inside of an option's brackets. */
function zshText(text: string): string {
  return text.replace(/[[\]:\\]/g, '\\$&')
}

function zshValue(value: Value): string {
  switch (value.kind) {
    case 'words':
      return `word:(${value.words.join(' ')})`
    case 'algorithm':
      return 'algorithm:_qworker_algorithms'
    case 'file':
      return 'file:_files'
    case 'directory':
      return 'directory:_files -/'
    case 'payload':
      return 'payload:_qworker_payload'
    case 'other':
      return `${zshText(value.name)}: `
    default:
      return value satisfies never
  }
}

const FISH_HEAD = `# fish completion for qworker and its kin; made by: qworker completion fish

# Algorithms of the rc file that the line names, as the qworker knows them that stands beside the program.
function __qworker_algorithms
    set -l words (commandline -opc)
    set -l program qworker
    string match -q '*/*' -- $words[1]; and set program (string replace -r '[^/]*$' qworker -- $words[1])
    set -l config
    for i in (seq (count $words))
        switch $words[$i]
            case -c --config
                test $i -lt (count $words); and set config -c $words[(math $i + 1)]
            case '--config=*'
                set config -c (string replace -- --config= '' $words[$i])
        end
    end
    set program (string replace -r '^~/' $HOME/ -- $program)
    set config (string replace -r '^~/' $HOME/ -- $config)
    $program completion --list algorithms $config 2>/dev/null
end

# True on the command line that is named: a program, and the subcommand after it
function __qworker_on
    set -l words (commandline -opc)
    set -l rest $argv[3..-1]
    if test -n "$argv[2]"
        test "$words[2]" = "$argv[2]"
    else
        not contains -- "$words[2]" $rest
    end
end
`

export function makeFishScript(lines: readonly CompletedLine[]): string {
  const commands = lines.flatMap((line) => {
    const [program = '', subcommand = ''] = line.name.split(' ')
    const others = line.subcommands.map(({ word }) => word).join(' ')
    const condition = `-n ${quoteFish(`__qworker_on ${program} ${subcommand === '' ? `'' ${others}` : subcommand}`.trimEnd())}`
    const start = `complete -c ${program} ${condition}`
    return [
      ...(isProgram(line) ? [`complete -c ${program} -f`] : []),
      ...line.subcommands.map(
        ({ word, summary }) =>
          `complete -c ${program} -n 'test (count (commandline -opc)) -eq 1' -a ${word} -d ${quoteFish(summary)}`,
      ),
      ...line.options.map((option) => `${start} ${fishOption(option)}`),
      ...line.operands.map((value) => `${start} ${fishValue(value, false)}`.trimEnd()),
    ]
  })
  return `${FISH_HEAD}\n${commands.join('\n')}\n`
}

function fishOption({ flags, summary, value, isOptional }: CompletedOption): string {
  const names = flags.map((flag) => (flag.startsWith('--') ? `-l ${flag.slice(2)}` : `-s ${flag.slice(1)}`))
  const taken = value === undefined ? '' : ` ${fishValue(value, !isOptional)}`
  return `${names.join(' ')}${taken.trimEnd()} -d ${quoteFish(summary)}`
}

/** @param isRequired the option is not complete without it */
function fishValue(value: Value, isRequired: boolean): string {
  const start = isRequired ? '-x' : '-f'
  switch (value.kind) {
    case 'words':
      return `${start} -a ${quoteFish(value.words.join(' '))}`
    case 'algorithm':
      return `${start} -a '(__qworker_algorithms)'`
    case 'file':
      return isRequired ? '-r -F' : '-F'
    case 'directory':
      return `${start} -a '(__fish_complete_directories)'`
    case 'payload':
      return `${start} -a '@(__fish_complete_path (string replace -r "^@" "" -- (commandline -ct)))'`
    case 'other':
      return isRequired ? '-x' : ''
    default:
      return value satisfies never
  }
}

function quoteFish(text: string): string {
  return `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`
}
