/** The broker as our programs name it. */

import type { Config } from '../config.ts'

/** The value of BEANSTALK_SERVER with which the worker is the broker too. */
const EMBEDDED = 'embedded'
/** Whoever embeds a broker means this machine alone. */
export const EMBEDDED_HOST = '127.0.0.1'

export function isEmbedded({ BEANSTALK_SERVER }: Pick<Config, 'BEANSTALK_SERVER'>): boolean {
  return BEANSTALK_SERVER === EMBEDDED
}

export function brokerUrl(config: Config): string {
  return `beanstalk://${brokerAddress(config)}`
}

/** `host:port` */
export function brokerAddress(config: Config): string {
  const { BEANSTALK_SERVER, BEANSTALK_PORT: port } = config
  const host = isEmbedded(config) ? EMBEDDED_HOST : BEANSTALK_SERVER
  return `${host.includes(':') ? `[${host}]` : host}:${port}`
}

/** The driver's words for a broker that cannot be reached, and the next step. */
export function brokerAdvice(config: Config, error: Error): string {
  if (isEmbedded(config)) return `${error.message}: start a worker with this BEANSTALK_PORT, which is the broker too`
  const start = `beanstalkd -l 127.0.0.1 -p ${config.BEANSTALK_PORT}`
  return `${error.message}: start it with "${start}", or set BEANSTALK_SERVER and BEANSTALK_PORT`
}
