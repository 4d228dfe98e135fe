/** YAML for the readers of rc files and manifests: what it is made of, in any order. */

import fc from 'fast-check'

const FRAGMENTS = [
  ...[
    '---',
    '...',
    '%YAML 1.1\n---\n',
    '%TAG ! tag:a,2000:\n',
    '- ',
    '? ',
    ': ',
    '|',
    '>-',
    '{',
    '}',
    '[',
    ']',
    ',',
    '"',
    "'",
  ],
  ...['&a ', '*a', '*b', '<<: ', '<<: *a', '!!binary ', '!!set ', '!!omap ', '!!timestamp ', '!!js/function ', '!<x> '],
  ...[
    '#',
    '\n',
    '\n  ',
    '\t',
    '\r',
    ' ',
    '\u0000',
    '\u0085',
    '\u2028',
    '\ufeff',
    '\ud800',
    '~',
    'null',
    'yes',
    'off',
    '.nan',
  ],
  ...[
    '-.inf',
    '1e999',
    '0x1F',
    '0o17',
    '12345678901234567890',
    '2001-01-01',
    '__proto__: ',
    'constructor: ',
    '=',
    '@',
    '`',
  ],
]

/** Pieces of YAML in any order, among them the keys given. */
export function yamlText(keys: readonly string[]) {
  const piece = fc.oneof(
    { arbitrary: fc.constantFrom(...FRAGMENTS), weight: 6 },
    { arbitrary: fc.constantFrom(...keys.map((key) => `\n${key}: `)), weight: 3 },
    { arbitrary: fc.string({ maxLength: 6 }), weight: 1 },
  )
  return fc.array(piece, { maxLength: 30 }).map((pieces) => pieces.join(''))
}

/** Any value that JSON, and so YAML, can say. */
export const yamlValue = fc.oneof(
  fc.constantFrom(null, true, false, '', 'auto', 'off', 'none', '90s', '64MiB', 'builtin', 'a,b', [], [[]], {}, [
    'default',
  ]),
  fc.integer(),
  fc.double(),
  fc.string({ unit: 'binary', maxLength: 30 }),
  fc.array(fc.string({ maxLength: 5 }), { maxLength: 5 }),
  fc.jsonValue({ maxDepth: 3 }),
)
