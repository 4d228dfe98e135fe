/** What beanstalkd's replies say; pure. */

export type Dictionary = ReadonlyMap<string, string>

const LONGEST_HEAD = 64

/** How much of the body of a reply has not come yet; 0 when not even that can be told. */
export function countMissing(reply: Buffer = Buffer.alloc(0)): number {
  const match = /^(?:OK|(?:RESERVED|FOUND) \d+) (\d+)\r\n/.exec(reply.toString('latin1', 0, LONGEST_HEAD))
  return match === null ? 0 : match[0].length + Number(match[1]) + 2 - reply.length
}

/** `key: value` lines; the only YAML that the commands used here are answered with. */
export function readDictionary(body: unknown): Dictionary {
  const pairs = String(body)
    .split('\n')
    .flatMap((line) => {
      const match = /^([a-z-]+): (.*)$/.exec(line)
      return match ? [[match[1] as string, (match[2] as string).replace(/^"(.*)"$/, '$1')] as const] : []
    })
  return new Map(pairs)
}
