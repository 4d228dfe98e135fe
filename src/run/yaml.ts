/** YAML as people write it, in rc files and manifests: what it holds, or what is wrong with it. */

import { excerpt } from '../job/package.ts'

/** What makes a folder that of an algorithm. Named here for those who look no further, and load no more. */
export const MANIFEST = 'algorithm.yaml'

/** More than any rc file or manifest has; the time that checking takes grows with the square of it. */
export const MAX_YAML_BYTES = 64 * 1024

/**
 * Levels of nesting that are taken. The package composes by recursion: tens of thousands of levels exhaust its stack, and
 * a regular expression that V8 compiles at the brink ends the process (FATAL ERROR: RegExpCompiler), which nothing catches.
 */
const MAX_LEVELS = 64
const MAX_FAULTS = 10
const MAX_FAULT_LENGTH = 200

export type Yaml = { readonly value: unknown } | { readonly faults: readonly string[] }

/** Reads one document. Never throws. Each fault is one line that can be shown. */
export async function readYaml(source: string): Promise<Yaml> {
  const { Lexer, Parser, parseDocument } = await import('yaml')
  const lexer = new Lexer()
  const parser = new Parser()
  for (const lexeme of lexer.lex(source)) {
    for (const _ of parser.next(lexeme));
    if (parser.stack.length > MAX_LEVELS) return { faults: [`it is nested more than ${MAX_LEVELS} levels deep`] }
  }
  try {
    const document = parseDocument(source, { prettyErrors: true, uniqueKeys: true })
    const faults = [...document.errors, ...document.warnings].map(({ message }) => firstLine(message))
    if (faults.length === 0) return { value: document.toJS({ maxAliasCount: 10 }) }
    const rest = faults.length - MAX_FAULTS
    return { faults: [...faults.slice(0, MAX_FAULTS), ...(rest > 0 ? [`and ${rest} more faults`] : [])] }
  } catch (error) {
    return { faults: [firstLine(error instanceof Error ? error.message : String(error))] }
  }
}

function firstLine(message: string): string {
  return excerpt(message.split('\n', 1)[0]?.replace(/:$/, '') ?? '', MAX_FAULT_LENGTH)
}
