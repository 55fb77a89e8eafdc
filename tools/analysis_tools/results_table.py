"""Make a benchmark's Markdown table from its committed results, in a document or printed."""

import argparse
import sys
from pathlib import Path

from mmdfkd.evaluation.results import insert_tables, read_results, results_markdown, write_text
from mmdfkd.utils.launch import fail_clearly


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('results', type=Path, help='docs/results/<benchmark>.jsonl')
    parser.add_argument(
        '--into',
        type=Path,
        help='document to write the tables into, between <!-- results:<benchmark> --> (or '
        '<!-- results:<benchmark> set=digits row!=noise columns=images,retention -->: those lines '
        'and columns alone) and <!-- /results -->; printed where not given',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing: status 1 if the table in the document is not this one',
    )
    args = parser.parse_args(argv)
    if args.check and args.into is None:
        parser.error('--check needs --into')
    return args


def main(argv: list[str] | None = None) -> None:
    """Print, insert or check the table."""
    args = parse_args(argv)
    results = read_results(args.results)
    if args.into is None:
        print(results_markdown(results))
        return
    document = args.into.read_text(encoding='utf-8')
    updated = insert_tables(document, results)
    if updated == document:
        return
    if args.check:
        raise ValueError(
            f'The table of {args.results.stem} in {args.into} is not that of {args.results}. Run: '
            f'python tools/analysis_tools/results_table.py {args.results} --into {args.into}'
        )
    write_text(args.into, updated)


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
