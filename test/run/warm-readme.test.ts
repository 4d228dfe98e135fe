import { chmodSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { openGround, PROJECT } from './ground.ts'
import { openWarm } from './warm.ts'

const README = readFileSync(join(PROJECT, 'algorithms/README.md'), 'utf8')

/** A file as it stands there: from the line with its name to the next name, or to the end of the code. */
function takeFile(name: string): string {
  const lines = README.split('\n')
  const start = lines.findIndex((line) => line === `    # ${name}` || line === `    // ${name}`)
  expect(start, name).toBeGreaterThan(0)
  const length = lines.slice(start + 1).findIndex((line) => /^\S/.test(line) || /^ {4}(#|\/\/) \w+\.\w+$/.test(line))
  return lines
    .slice(start + 1, start + 1 + length)
    .map((line) => line.slice(4))
    .join('\n')
}

test.each([
  ['Python', 'serve.py', 'mean.py', ['python3']],
  ['Node.js', 'serve.mjs', 'mean.mjs', ['{node}']],
  ['shell', 'serve.sh', 'mean.sh', ['sh']],
])('the helper for %s serves as it stands in the README', async (_, helper, program, command) => {
  const ground = openGround()
  for (const name of [helper, program]) writeFileSync(join(ground.dir, name), takeFile(name))
  chmodSync(ground.dir, 0o755)
  const slot = openWarm(ground, { command: [...command, join(ground.dir, program)] })
  const first = await slot.run({ numbers: [1, 2, 6] })
  expect(first).toMatchObject({ outcome: { kind: 'success' }, stderrTail: '' })
  expect(JSON.parse(first.resultJson ?? '')).toEqual({ mean: 3 })
  const bad = await slot.run({ numbers: [] })
  expect(bad.outcome).toMatchObject({ kind: 'rejected', error: expect.stringMatching(/a list|input is bad/) })
  // Ends of lines for this language or that, and none for JSON.
  const odd = await slot.run({ numbers: [2, 4], note: 'a\u2028b\u2029c\u0085d\\n' })
  expect(JSON.parse(odd.resultJson ?? '')).toEqual({ mean: 3 })
  expect([bad.pid, odd.pid]).toEqual([first.pid, first.pid])
})

test('what a library prints goes to stderr, and is no answer', async () => {
  const ground = openGround()
  writeFileSync(join(ground.dir, 'serve.py'), takeFile('serve.py'))
  writeFileSync(join(ground.dir, 'serve.mjs'), takeFile('serve.mjs'))
  writeFileSync(join(ground.dir, 'serve.sh'), takeFile('serve.sh'))
  const python =
    'import os\nfrom serve import serve\ndef work(job):\n  print("hm", flush=True)\n  os.system("echo hm")\n  return 1\nserve(work)\n'
  const node = "import { serve } from './serve.mjs'\nserve(() => { console.log('hm\\nhm'); return 1 })\n"
  const shell = '. "$(dirname "$0")/serve.sh"\nwork() { echo hm >&2; echo hm >&2; echo 1; }\nserve\n'
  for (const [name, text, program] of [
    ['talks.py', python, 'python3'],
    ['talks.mjs', node, '{node}'],
    ['talks.sh', shell, 'sh'],
  ] as const) {
    writeFileSync(join(ground.dir, name), text)
    const slot = openWarm(ground, { name: name.replace('talks', 'of'), command: [program, join(ground.dir, name)] })
    for (let i = 0; i < 2; i++)
      expect(await slot.run(), name).toMatchObject({ resultJson: '1', stderrTail: 'hm\nhm\n', logs: ['stderr.log'] })
  }
})
