import { randomBytes } from 'node:crypto'
import { expect, test } from 'vitest'
import { findDouble, makeServers, parseServers, rankServers } from '../../src/queue/servers.ts'

const namesOf = (value: unknown, port = 11300) => makeServers(parseServers(value), port).map(({ name }) => name)

test.each<[unknown, string[]]>([
  ['localhost', ['localhost:11300']],
  ['queue.example.org:11301', ['queue.example.org:11301']],
  ['10.0.0.1, 10.0.0.2:11301', ['10.0.0.1:11300', '10.0.0.2:11301']],
  [' a b:1\n c ', ['a:11300', 'b:1', 'c:11300']],
  [
    ['a', 'b:65535'],
    ['a:11300', 'b:65535'],
  ],
  ['::1', ['[::1]:11300']],
  ['[::1]', ['[::1]:11300']],
  ['[fe80::1]:11301,::1', ['[fe80::1]:11301', '[::1]:11300']],
  [['a'], ['a:11300']],
])('%j names %j', (value, names) => {
  expect(namesOf(value)).toEqual(names)
})

test('one server stays the text that it was; its URL has address and port', () => {
  expect(parseServers('embedded')).toBe('embedded')
  expect(parseServers('a:5')).toBe('a:5')
  expect(makeServers('::1', 7)).toEqual([{ host: '::1', port: 7, name: '[::1]:7', url: 'beanstalk://[::1]:7' }])
})

test.each<[unknown, RegExp]>([
  ['', /one of them is empty/],
  ['a,,b', /one of them is empty/],
  ['a,', /one of them is empty/],
  [[], /there are 0 of them, and 1 to 64 are taken/],
  [Array.from({ length: 65 }, (_, i) => `h${i}`), /there are 65 of them/],
  [7, /neither a text nor a list/],
  [null, /neither a text nor a list/],
  [['a', 11300], /11300 is no text/],
  ['a:0', /"a:0" has no port from 1 to 65535 behind its colon/],
  ['a:', /"a:" has no port/],
  ['a:70000', /has no port/],
  ['a:b', /has no port/],
  [':11300', /":11300" has no host/],
  ['http://a', /has no port|no host/],
  ['a/b', /"a\/b" has no host/],
  ['a:b:c', /"a:b:c" is no IPv6 address; with a port one is written \[::1\]:11300/],
  ['[a]:5', /"\[a\]:5" has no IPv6 address in its brackets/],
  ['[::1', /is no IPv6 address/],
  ['a, embedded', /embedded is the broker of this machine and goes with no other/],
  ['embedded:11301', /embedded has its port in BEANSTALK_PORT/],
])('%j is refused, and told why', (value, why) => {
  expect(() => parseServers(value)).toThrow(RangeError)
  expect(() => parseServers(value)).toThrow(why)
})

test.each<[string[], string | undefined]>([
  [['a', 'a:11300'], 'a:11300'],
  [['a:1', 'a:2'], undefined],
  [['a', 'b', 'A'], 'A:11300'],
  [['::1', '[0:0::1]'], '[0:0::1]:11300'],
  [['10.0.0.1', '10.0.0.2'], undefined],
  [['..', '999.1'], undefined],
])('of %j the one that stands there twice is %s', (texts, double) => {
  expect(findDouble(makeServers(texts, 11300))?.name).toBe(double)
})

const KEYS = Array.from({ length: 20_000 }, () => randomBytes(16).toString('hex'))
const IN_ORDER = Array.from({ length: 20_000 }, (_, i) => i.toString(16).padStart(32, '0'))

function countFirsts(keys: readonly string[], names: readonly string[]): Map<string, number> {
  const counts = new Map<string, number>()
  for (const key of keys) {
    const [first] = rankServers(
      key,
      names.map((name) => ({ name })),
    )
    counts.set(first?.name ?? '', (counts.get(first?.name ?? '') ?? 0) + 1)
  }
  return counts
}

test.each([
  ['of two ports', ['127.0.0.1:11300', '127.0.0.1:11301']],
  ['of three hosts', ['a:11300', 'b:11300', 'c:11300']],
  ['of ten', Array.from({ length: 10 }, (_, i) => `queue-${i}.example.org:11300`)],
])('jobs spread evenly over servers %s, with uuids at random and in order', (_, names) => {
  for (const keys of [KEYS, IN_ORDER]) {
    const counts = countFirsts(keys, names)
    const fair = keys.length / names.length
    for (const name of names) expect(Math.abs((counts.get(name) ?? 0) - fair) / fair, name).toBeLessThan(0.1)
  }
})

test('a server that is added takes its share, and moves no job between the others; the order of the list is the same to it', () => {
  const four = ['a:1', 'b:1', 'c:1', 'd:1'].map((name) => ({ name }))
  const five = [{ name: 'e:1' }, ...four].reverse()
  let moved = 0
  for (const key of KEYS) {
    const before = rankServers(key, four).map(({ name }) => name)
    const after = rankServers(key, five).map(({ name }) => name)
    if (after[0] === 'e:1') moved++
    expect(after.filter((name) => name !== 'e:1')).toEqual(before)
  }
  expect(Math.abs(moved / KEYS.length - 1 / 5)).toBeLessThan(0.02)
})

test('the jobs of a server that is down spread over all others', () => {
  const servers = ['a:1', 'b:1', 'c:1', 'd:1'].map((name) => ({ name }))
  const ofA = KEYS.map((key) => rankServers(key, servers)).filter(([first]) => first?.name === 'a:1')
  for (const next of ['b:1', 'c:1', 'd:1']) {
    const share = ofA.filter(([, second]) => second?.name === next).length / ofA.length
    expect(Math.abs(share - 1 / 3), next).toBeLessThan(0.03)
  }
})
