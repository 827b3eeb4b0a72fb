"""
The official GSM8K files (openai/grade-school-math, MIT licence): 7,473 train and 1,319 test rows.

    python data/gsm8k.py               # download into data/gsm8k/
    python data/gsm8k.py --from DIR    # or copy train.jsonl and test.jsonl from a folder

Both files are checked against their sha256 before anything is written.
"""

import argparse
import hashlib
import os
import urllib.request

URL = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/"
SHA256 = {
    "train.jsonl": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    "test.jsonl": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
}
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "gsm8k")


def main(argv=None):
    parser = argparse.ArgumentParser(description="get the official GSM8K files")
    parser.add_argument("--from", dest="source", metavar="DIR",
                        help="copy from this folder instead of downloading")
    parser.add_argument("--out", metavar="DIR", default=OUT, help="where to write (default: %(default)s)")
    args = parser.parse_args(argv)

    contents = {}
    for name, expected in SHA256.items():
        place = os.path.join(args.source, name) if args.source else URL + name
        try:
            if args.source:
                with open(place, "rb") as f:
                    contents[name] = f.read()
            else:
                print(f"downloading {place}")
                with urllib.request.urlopen(place, timeout=60) as response:
                    contents[name] = response.read()
        except OSError as error:  # URLError is one
            hint = "" if args.source else "; with a copy of train.jsonl and test.jsonl, use --from DIR"
            parser.error(f"cannot read {place}: {error}{hint}")
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            parser.error(f"{place} is not the official file: its sha256 is {found}, expected {expected}")

    try:
        os.makedirs(args.out, exist_ok=True)
        for name, content in contents.items():
            path = os.path.join(args.out, name)
            with open(path + ".tmp", "wb") as f:
                f.write(content)
            os.replace(path + ".tmp", path)
            print(f"wrote {path}: {len(content.splitlines())} problems")
    except OSError as error:
        parser.error(f"--out {args.out}: {error}")


if __name__ == "__main__":
    main()
