import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { encodePackage, PackageError, UUID_PATTERN } from '../../src/job/package.ts'
import { makePackage, payloadFromText, submit } from '../../src/producer.ts'
import { QueueError } from '../../src/queue/queue.ts'
import { startBroker, type TestBroker } from '../support/broker.ts'
import { newPut, openForTest, takeAll } from '../support/packages.ts'

const UUID = 'bc3a925099b9012e0f06549a20077664'
let broker: TestBroker

beforeAll(async () => {
  broker = await startBroker()
})
afterAll(() => broker.stop())

describe('a payload', () => {
  it.each([
    ['{"n": 12345678901234567890.10}', '{"n": 12345678901234567890.10}'],
    [' \n[1, 2]\n', '[1, 2]'],
    ['plain', '{"payload":"plain"}'],
    ['  kept blanks  ', '{"payload":"  kept blanks  "}'],
    ['42', '{"payload":"42"}'],
    ['', '{"payload":""}'],
    ['"quoted"\n', '{"payload":"\\"quoted\\"\\n"}'],
  ])('from %j is %s', (text, json) => {
    expect(payloadFromText(text)).toBe(json)
  })

  it.each(['{a: 1}', '[1,', '{"a":1}}', '{not json'])(
    'that begins like JSON and is none (%s) is refused with both ways out',
    (text) => {
      expect(() => payloadFromText(text)).toThrow(PackageError)
      expect(() => payloadFromText(text)).toThrow(/correct it, or to send it as text write \{"payload": "\.\.\."\}/)
    },
  )
})

describe('a submission', () => {
  it('arrives as it was made, with a new uuid', async () => {
    const [queue, put] = [await openForTest(broker.url), newPut()]
    const workPackage = makePackage({
      type: 'sleep',
      payloadJson: '{"n":1.10}',
      maxAttempts: 3,
      tags: { season: 'winter' },
    })
    expect(workPackage.header.uuid).toMatch(UUID_PATTERN)
    const { ticket, bytes } = await submit(queue, workPackage, put)
    expect(ticket).toMatch(/^\d+$/)
    expect(bytes).toBe(encodePackage(workPackage).length)
    expect(await takeAll(put.tube, broker.url)).toEqual([workPackage])
  })

  it('over the limit of the broker is refused before the put, with both sizes and what to do', async () => {
    const queue = await openForTest(broker.url)
    const before = await broker.stat('cmd-put')
    const workPackage = makePackage({ uuid: UUID, type: 'sleep', payloadJson: `{"x":"${'x'.repeat(70_000)}"}` })
    const error = (await submit(queue, workPackage, newPut()).catch((reason: unknown) => reason)) as QueueError
    expect(error).toBeInstanceOf(QueueError)
    expect(error.code).toBe('too_big')
    expect(error.message).toBe(
      'the work package has 70069 bytes and the broker takes at most 65535: start beanstalkd with -z 70069, or put the data on a URL and send that',
    )
    expect(await broker.stat('cmd-put')).toBe(before)
  })
})
