/**
 * Options as a table, for a program that is called often: a command line in which all is in order is read from it at once.
 * Anything else, help and mistakes among it, is for commander, which takes half as long to load as Node itself.
 */

import { parseArgs } from 'node:util'

export interface OptionRow {
  /** as commander takes them: `-c, --config <file>`, `--json` */
  readonly flags: string
  readonly description: string
  /** may be given more than once, and has a list of values */
  readonly isList?: true
}

/** The flags, with names as commander makes them; undefined when it has to look itself. */
export function readPlainly<Flags extends object>(
  table: readonly OptionRow[],
  args: readonly string[],
): Flags | undefined {
  const options = Object.fromEntries(
    table.map(({ flags, isList }) => {
      const [, short, long = '', value] = /^(?:-(\w), )?--([\w-]+)( <)?/.exec(flags) ?? []
      const type = value === undefined ? ('boolean' as const) : ('string' as const)
      return [long, { type, multiple: isList ?? false, ...(short === undefined ? {} : { short }) }]
    }),
  )
  try {
    const { values } = parseArgs({ args: [...args], options, strict: true, allowPositionals: false })
    return Object.fromEntries(Object.entries(values).map(([name, value]) => [camelCase(name), value])) as Flags
  } catch {
    return undefined
  }
}

function camelCase(name: string): string {
  return name.replace(/-(\w)/g, (_, letter: string) => letter.toUpperCase())
}
